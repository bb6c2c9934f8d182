//! Tags from orchestrators, which are played here: a kubelet behind TLS that asks for a token, and
//! the task metadata endpoint of ECS. Documents have the shape of the originals' references.

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use tallyd::time::Time;

use super::process::{Launch, Tallyd, UDP};
use super::received::Received;
use super::test_intake::Intake;
use super::tls::{head, serve};

/// What a server answers, and what it was asked.
#[derive(Default)]
struct Played {
    document: Mutex<Value>,
    /// It hangs up.
    is_down: AtomicBool,
    asked: AtomicUsize,
    /// The path of the document and what must stand in the head of a request for it.
    path: &'static str,
    password: Option<String>,
}

impl Played {
    fn answer(&self, stream: impl Read + Write) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        while let Some(head) = head(&mut stream)? {
            self.asked.fetch_add(1, Relaxed);
            if self.is_down.load(Relaxed) {
                return Ok(());
            }
            let lets_in = |line: &String| self.password.as_ref().is_none_or(|word| line == word);
            let status = if !head.iter().any(lets_in) {
                "401 Unauthorized"
            } else if head[0] != format!("GET {} HTTP/1.1", self.path) {
                "404 Not Found"
            } else {
                "200 OK"
            };
            let body = self.document.lock().unwrap().to_string();
            let length = body.len();
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
            stream.get_mut().write_all(answer.as_bytes())?;
        }
        Ok(())
    }
}

fn plain(played: &Arc<Played>) -> SocketAddr {
    let played = Arc::clone(played);
    serve(move |stream: TcpStream| played.answer(stream))
}

/// Its certificate is for 127.0.0.1, its own authority, and is returned.
fn behind_tls(played: &Arc<Played>) -> (SocketAddr, String) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        );
    let (config, played) = (Arc::new(config.unwrap()), Arc::clone(played));
    let address = serve(move |stream| {
        let tls = ServerConnection::new(Arc::clone(&config)).unwrap();
        played.answer(StreamOwned::new(tls, stream))
    });
    (address, certificate)
}

const ID: &str = "9b1c2d3eaaaa0000000000000000000000000000000000000000000000000001";
const LATE: &str = "9b1c2d3ebbbb0000000000000000000000000000000000000000000000000002";
const UID: &str = "0b1c2d3e-1111-2222-3333-444455556666";

fn pod(containers: &[(&str, &str)]) -> Value {
    let statuses = containers.iter().map(|(name, id)| {
        json!({"name": name, "containerID": format!("containerd://{id}"), "image": "web:1",
            "restartCount": 0, "state": {"running": {}}})
    });
    json!({"kind": "PodList", "items": [{
        "metadata": {"name": "web-0", "namespace": "shop", "uid": UID,
            "ownerReferences": [{"kind": "StatefulSet", "name": "web"}]},
        "spec": {"containers": []},
        "status": {"podIP": "127.0.0.1", "containerStatuses": statuses.collect::<Vec<_>>()}
    }]})
}

fn launch(intake: &Intake) -> Launch {
    let launch = Launch::new().to(intake).listen(&[UDP]).set("flush.interval", "5");
    launch.env("DD_DOGSTATSD_TAG_CARDINALITY", "high").set("sinks.spool.enabled", "false")
}

/// The tags of the last point of a name, once there is one.
fn tags(intake: &Intake, tallyd: &Tallyd, name: &str) -> String {
    let last = || Received::of(&intake.requests()).named(name).last().map(|p| p.tags.clone());
    tallyd.wait_until(name, |_| last().is_some());
    last().unwrap()
}

/// Sends until these tags arrive. What comes just before its bucket closes does not wait for its
/// address to be found out: then there is a series without them too, with zeros from then on.
fn send_until(intake: &Intake, tallyd: &Tallyd, name: &str, tags: &str) {
    tallyd.wait_until(tags, |tallyd| {
        tallyd.send([&*format!("{name}:1|c")]);
        let received = Received::of(&intake.requests());
        received.named(name).iter().any(|point| point.tags == tags && point.value > 0.0)
    });
}

#[test]
fn the_kubelet_tells_of_pods() {
    let token = "letmein";
    let played = Arc::new(Played {
        document: Mutex::new(pod(&[("app", ID)])),
        path: "/pods",
        password: Some(format!("authorization: Bearer {token}")),
        ..Played::default()
    });
    let (address, certificate) = behind_tls(&played);
    let intake = Intake::start();
    let launch = launch(&intake);
    std::fs::write(launch.path("token"), format!("{token}\n")).unwrap();
    std::fs::write(launch.path("ca.pem"), certificate).unwrap();
    let tallyd = launch
        .env("DD_KUBERNETES_KUBELET_HOST", "127.0.0.1")
        .env("DD_KUBERNETES_HTTPS_KUBELET_PORT", &address.port().to_string())
        .env("DD_KUBELET_AUTH_TOKEN_PATH", "{folder}/token")
        .env("DD_KUBELET_CLIENT_CA", "{folder}/ca.pem")
        .set("collectors.kubelet.interval", "3600")
        .set("origin.loopback", "true")
        .start();
    tallyd.wait_for_stderr("kubelet: tells of 1 containers");
    tallyd.send([
        &*format!("by.id:1|c|c:ci-{ID}"),
        &format!("by.pod:1|c|#dd.internal.entity_id:{UID}"),
    ]);
    let of_pod = "kube_namespace:shop,kube_ownerref_kind:statefulset,kube_ownerref_name:web,\
                  kube_stateful_set:web,pod_name:web-0";
    assert_eq!(tags(&intake, &tallyd, "by.pod"), of_pod);
    let all = format!(
        "container_id:{ID},container_name:app,display_container_name:app_web-0,image_name:web,\
         image_tag:1,kube_container_name:app,{of_pod},short_image:web"
    );
    assert_eq!(tags(&intake, &tallyd, "by.id"), all);
    send_until(&intake, &tallyd, "by.address", &all);
    // A container that came later is asked for when it sends. The kubelet does not tell at once.
    let asked = played.asked.load(Relaxed);
    let begun = Time::now();
    tallyd.send([&*format!("late:1|c|c:ci-{LATE}")]);
    tallyd.wait_until("it is asked", |_| played.asked.load(Relaxed) > asked);
    *played.document.lock().unwrap() = pod(&[("app", ID), ("late", LATE)]);
    let late = tags(&intake, &tallyd, "late");
    // It waits no longer than its bucket is open.
    assert!(late.contains("kube_container_name:late") || Time::now().0 - begun.0 > 4000, "{late}");
    tallyd.wait_until("both are known", |tallyd| {
        tallyd.send([&*format!("later:1|c|c:ci-{LATE}"), "by.two:1|c"]);
        let received = Received::of(&intake.requests());
        let last = received.named("later").last().map(|point| point.tags.clone());
        last.is_some_and(|tags| tags.contains("kube_container_name:late"))
    });
    assert_eq!(tags(&intake, &tallyd, "by.two"), of_pod, "two of one pod have the address");
    assert_eq!(tallyd.figure("tallyd_orchestrator_errors_total", ""), 0.0);
    tallyd.stop();
}

/// An annotation and a setting of the Agent's leave containers out of the figures; their senders
/// keep their tags.
#[test]
fn what_a_pod_or_the_settings_exclude_is_not_measured() {
    let mut document = pod(&[("app", ID), ("side", LATE)]);
    document["items"][0]["metadata"]["annotations"] =
        json!({"ad.datadoghq.com/app.metrics_exclude": "true"});
    let played =
        Arc::new(Played { document: Mutex::new(document), path: "/pods", ..Played::default() });
    let address = plain(&played);
    let intake = Intake::start();
    let launch = launch(&intake);
    let machine = launch.path("machine");
    let other = ID.replace('0', "f");
    let pod = machine.join("sys/fs/cgroup").join(format!("kubepods/pod{UID}"));
    for id in [ID, LATE, &*other] {
        let cgroup = pod.join(id);
        std::fs::create_dir_all(&cgroup).unwrap();
        std::fs::write(cgroup.join("pids.current"), "3\n").unwrap();
    }
    std::fs::write(machine.join("sys/fs/cgroup/cgroup.controllers"), "pids\n").unwrap();
    std::fs::create_dir_all(machine.join("proc/1")).unwrap();
    let tallyd = launch
        .env("DD_KUBERNETES_KUBELET_HOST", "127.0.0.1")
        .env("DD_KUBERNETES_HTTPS_KUBELET_PORT", "0")
        .env("DD_KUBERNETES_HTTP_KUBELET_PORT", &address.port().to_string())
        .env("DD_CONTAINER_PROC_ROOT", "{folder}/machine/proc")
        .env("DD_CONTAINER_CGROUP_ROOT", "{folder}/machine/sys/fs/cgroup")
        .env("DD_CONTAINER_EXCLUDE", "name:^nobody$")
        .env("DD_CONTAINER_EXCLUDE_METRICS", "name:^side$")
        .set("collectors.cgroup.enabled", "on")
        .set("collectors.docker.enabled", "off")
        .start();
    tallyd.wait_for_stderr("kubelet: tells of 2 containers");
    let threads = |received: &Received| {
        let points = received.named("container.pid.thread_count").into_iter();
        let tags = points.flat_map(|point| point.tags.split(',').map(str::to_owned));
        let ids = tags.filter_map(|tag| tag.strip_prefix("container_id:").map(str::to_owned));
        ids.collect::<std::collections::BTreeSet<_>>()
    };
    tallyd.wait_until("figures", |_| !threads(&Received::of(&intake.requests())).is_empty());
    let mark = intake.requests().len();
    let seen = || threads(&Received::of(&intake.requests()[mark..]));
    tallyd.wait_until("figures once more", |_| !seen().is_empty());
    assert_eq!(seen().into_iter().collect::<Vec<_>>(), [other]);
    tallyd.send([&*format!("by.id:1|c|c:ci-{ID}")]);
    let by_id = tags(&intake, &tallyd, "by.id");
    assert!(by_id.contains("kube_container_name:app"), "{by_id}");
    tallyd.stop();
}

#[test]
fn a_task_of_ecs_tells_of_itself() {
    let arn = "arn:aws:ecs:us-west-2:111122223333:task/shop/158d1c8083dd49d6b527399fd6414f5c";
    let container = |name: &str, id: &str| {
        json!({"DockerId": id, "Name": name, "DockerName": name, "Image": "web:1",
            "KnownStatus": "RUNNING", "Type": "NORMAL",
            "Networks": [{"NetworkMode": "awsvpc", "IPv4Addresses": ["10.0.2.106"]}]})
    };
    let id = "158d1c8083dd49d6b527399fd6414f5c-0527074092";
    let document = json!({"Cluster": "shop", "TaskARN": arn, "Family": "front", "Revision": "5",
        "Containers": [container("web", id), container("tallyd", "158d1c8083dd49d6b527399fd6414f5c-1")]});
    let played = Arc::new(Played {
        document: Mutex::new(document),
        path: "/v4/158d/task",
        is_down: true.into(),
        ..Played::default()
    });
    let address = plain(&played);
    let intake = Intake::start();
    let tallyd = launch(&intake)
        .env("ECS_CONTAINER_METADATA_URI_V4", &format!("http://{address}/v4/158d"))
        .set("collectors.ecs.interval", "1")
        .start();
    tallyd.wait_for_stderr("what is known of its containers stays");
    assert!(tallyd.figure("tallyd_orchestrator_errors_total", "") >= 1.0);
    played.is_down.store(false, Relaxed);
    tallyd.wait_for_stderr("ecs: tells of 2 containers");
    tallyd.send([&*format!("by.id:1|c|c:{id}")]);
    let task = format!("task_arn:{arn}");
    let expected = format!(
        "aws_account:111122223333,cluster_name:shop,ecs_cluster_name:shop,region:us-west-2,\
         {task},task_family:front,task_name:front,task_version:5"
    );
    // Every container of the task sends from the loopback.
    send_until(&intake, &tallyd, "by.address", &expected);
    let of_web = tags(&intake, &tallyd, "by.id");
    for tag in [&*format!("container_id:{id}"), "ecs_container_name:web", "image_tag:1", &task] {
        assert!(of_web.split(',').any(|own| own == tag), "{tag} in {of_web}");
    }
    // It goes away again: what is known stays.
    played.is_down.store(true, Relaxed);
    let asked = played.asked.load(Relaxed);
    tallyd.wait_until("it is asked twice", |_| played.asked.load(Relaxed) > asked + 1);
    send_until(&intake, &tallyd, "still", &expected);
    tallyd.stop();
}
