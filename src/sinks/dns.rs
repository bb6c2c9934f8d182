//! Addresses of names: as the system resolves them; while it cannot, the last addresses that were
//! found, and what fallback resolvers say.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::anyhow;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::telemetry::Telemetry;

/// How names are looked up when the system cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Resolvers that are asked when the system's fails: IP or IP:PORT. The last addresses of a
    /// name are tried before theirs.
    pub fallback: Vec<String>,
}

/// The usual port of a resolver.
const PORT: u16 = 53;

/// Names whose addresses are kept. Only names of endpoints and proxies are looked up.
const NAMES_MAX: usize = 1000;

/// Addresses of a name that are used.
const ADDRESSES_MAX: usize = 16;

/// The address of a resolver, as it is written in settings.
pub fn resolver_address(text: &str) -> Option<SocketAddr> {
    let alone = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
    alone.or_else(|_| text.parse()).ok().filter(|address| address.port() != 0)
}

/// Looks names up with the functions of the system.
pub(super) async fn system(name: String) -> io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((name, 0)).await?.collect())
}

/// Resolves names; `L` is the system.
pub(super) struct Names<L> {
    lookup: L,
    shared: Arc<Shared>,
}

struct Shared {
    /// One of each server, to be asked in turn: a single one of several may give up at the first
    /// failure.
    fallback: Vec<TokioResolver>,
    /// How long each way of looking up may take.
    limit: Duration,
    known: Mutex<HashMap<String, Known>>,
    telemetry: Arc<Telemetry>,
}

/// What is known of a name.
struct Known {
    /// As they were last found, by whomever.
    addresses: Vec<SocketAddr>,
    source: Source,
}

/// Where the addresses in use come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    System,
    Memory,
    Fallback,
}

impl<L, F> Names<L>
where
    L: Fn(String) -> F,
    F: Future<Output = io::Result<Vec<SocketAddr>>>,
{
    /// # Errors
    /// One line that begins with the name of the setting that cannot be used.
    pub(super) fn new(
        config: &Config,
        limit: Duration,
        lookup: L,
        telemetry: &Arc<Telemetry>,
    ) -> anyhow::Result<Self> {
        let shared = Shared {
            fallback: resolvers(config, limit)?,
            limit,
            known: Mutex::default(),
            telemetry: Arc::clone(telemetry),
        };
        Ok(Self { lookup, shared: Arc::new(shared) })
    }

    /// The addresses of a name, those to be tried first in front.
    pub(super) fn addresses(
        &self,
        name: &str,
    ) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + use<L, F> {
        let looked_up = timeout(self.shared.limit, (self.lookup)(name.to_owned()));
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        async move {
            match found(looked_up.await) {
                Ok(addresses) => {
                    shared.know(&name, addresses.clone(), Source::System, "");
                    Ok(addresses)
                }
                Err(error) => shared.otherwise(&name, error).await,
            }
        }
    }
}

impl Shared {
    /// What is tried when the system has failed.
    async fn otherwise(&self, name: &str, error: io::Error) -> io::Result<Vec<SocketAddr>> {
        self.telemetry.dns_failures.add(1);
        let mut addresses = self.remembered(name);
        match found(timeout(self.limit, ask(&self.fallback, name)).await) {
            Ok(further) => {
                self.telemetry.dns_fallbacks.add(1);
                self.know(name, further.clone(), Source::Fallback, &error.to_string());
                let new: Vec<_> = further.into_iter().filter(|a| !addresses.contains(a)).collect();
                addresses.extend(new);
                Ok(addresses)
            }
            Err(_) if addresses.is_empty() => Err(error),
            Err(_) => {
                self.know(name, addresses.clone(), Source::Memory, &error.to_string());
                Ok(addresses)
            }
        }
    }

    fn remembered(&self, name: &str) -> Vec<SocketAddr> {
        let known = self.known.lock().expect("no panic under this lock");
        known.get(name).map_or_else(Vec::new, |known| known.addresses.clone())
    }

    /// Keeps addresses, and says so when they come from elsewhere than before.
    fn know(&self, name: &str, addresses: Vec<SocketAddr>, source: Source, problem: &str) {
        let mut known = self.known.lock().expect("no panic under this lock");
        if known.len() >= NAMES_MAX && !known.contains_key(name) {
            return;
        }
        let before = known.insert(name.to_owned(), Known { addresses, source });
        // A name that the system resolves is nothing new.
        if before.map_or(Source::System, |before| before.source) == source {
            return;
        }
        match source {
            Source::System => tracing::info!("the name {name} is resolved again"),
            Source::Memory => {
                tracing::warn!("cannot resolve {name}: {problem}; its last addresses are used");
            }
            Source::Fallback => {
                tracing::warn!("cannot resolve {name}: {problem}; the fallback resolvers are used");
            }
        }
    }
}

/// No addresses are no answer.
fn found<E>(answer: Result<io::Result<Vec<SocketAddr>>, E>) -> io::Result<Vec<SocketAddr>> {
    let mut addresses = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    if addresses.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    addresses.truncate(ADDRESSES_MAX);
    Ok(addresses)
}

/// Asks the resolvers until one has an answer. The name is whole: no search domain is put behind
/// it.
async fn ask(resolvers: &[TokioResolver], name: &str) -> io::Result<Vec<SocketAddr>> {
    let whole = format!("{}.", name.trim_end_matches('.'));
    for resolver in resolvers {
        if let Ok(answer) = resolver.lookup_ip(&whole).await {
            return Ok(answer.iter().map(|ip| SocketAddr::new(ip, 0)).collect());
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// A resolver for each server, all of which have their turn within the limit.
fn resolvers(config: &Config, limit: Duration) -> anyhow::Result<Vec<TokioResolver>> {
    let servers = config.fallback.len().max(1) as u32;
    let resolver = |text: &String| {
        let address = resolver_address(text);
        let address =
            address.ok_or_else(|| anyhow!("dns.fallback: {text:?} is neither IP nor IP:PORT"))?;
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut one| {
            one.port = address.port();
            one
        });
        let server = NameServerConfig::new(address.ip(), true, connections.into());
        let server = ResolverConfig::from_name_servers(vec![server]);
        let mut builder =
            TokioResolver::builder_with_config(server, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        // One question, and one more.
        options.attempts = 1;
        options.timeout = limit / (2 * servers);
        // The system has looked there.
        options.use_hosts_file = ResolveHosts::Never;
        options.cache_size = NAMES_MAX as u64;
        builder.build().map_err(|error| anyhow!("dns.fallback: {error}"))
    };
    config.fallback.iter().map(resolver).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::UdpSocket;
    use std::pin::Pin;

    use super::*;

    /// What a server answers.
    #[derive(Clone, Copy)]
    pub(crate) enum Answer {
        /// This for A, nothing for AAAA.
        V4([u8; 4]),
        /// This for AAAA, nothing for A.
        V6([u8; 16]),
        ServerFailure,
        NoSuchName,
        Silence,
    }

    /// A DNS server on the loopback, written from RFC 1035. Returns its address.
    pub(crate) fn server(answer: Answer) -> String {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let mut query = [0; 512];
            // Until the process ends.
            while let Ok((length, from)) = socket.recv_from(&mut query) {
                if let Some(response) = response(&query[..length], answer) {
                    socket.send_to(&response, from).unwrap();
                }
            }
        });
        address
    }

    fn response(query: &[u8], answer: Answer) -> Option<Vec<u8>> {
        const HEADER: usize = 12;
        let name = query[HEADER..].iter().position(|&byte| byte == 0)? + 1;
        let question = &query[HEADER..HEADER + name + 4];
        let wanted = u16::from_be_bytes([question[name], question[name + 1]]);
        let (code, data): (u8, &[u8]) = match (&answer, wanted) {
            (Answer::V4(ip), 1) => (0, ip),
            (Answer::V6(ip), 28) => (0, ip),
            (Answer::V4(_) | Answer::V6(_), _) => (0, &[]),
            (Answer::ServerFailure, _) => (2, &[]),
            (Answer::NoSuchName, _) => (3, &[]),
            (Answer::Silence, _) => return None,
        };
        let answers = u8::from(!data.is_empty());
        // A response, recursion wanted and had; one question, and what is known.
        let mut response =
            vec![query[0], query[1], 0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0];
        response.extend_from_slice(question);
        if !data.is_empty() {
            // The name is that of the question; its type, class IN, a minute.
            response.extend_from_slice(&[0xc0, HEADER as u8]);
            response.extend_from_slice(&wanted.to_be_bytes());
            response.extend_from_slice(&[0, 1, 0, 0, 0, 60, 0, data.len() as u8]);
            response.extend_from_slice(data);
        }
        Some(response)
    }

    type Found = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

    /// A system that answers the first time and never again.
    fn once(address: [u8; 4]) -> impl Fn(String) -> Found + Send + Sync {
        let left = Mutex::new(Some(address));
        move |_| {
            let answer = left.lock().unwrap().take();
            Box::pin(async move {
                let address = answer.ok_or_else(|| io::Error::other("no resolver"))?;
                Ok(vec![SocketAddr::from((address, 0))])
            })
        }
    }

    /// A system that never answers.
    pub(crate) fn failing(_: String) -> Found {
        Box::pin(async { Err(io::Error::other("no resolver")) })
    }

    fn names<L>(fallback: &[&str], lookup: L, telemetry: &Arc<Telemetry>) -> Names<L>
    where
        L: Fn(String) -> Found,
    {
        let fallback = fallback.iter().map(|server| (*server).to_owned()).collect();
        Names::new(&Config { fallback }, Duration::from_secs(2), lookup, telemetry).unwrap()
    }

    async fn ask(names: &Names<impl Fn(String) -> Found>, name: &str) -> String {
        match names.addresses(name).await {
            Ok(found) => found.iter().map(|a| a.ip().to_string()).collect::<Vec<_>>().join(" "),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn the_last_addresses_serve_while_the_resolver_fails() {
        let answers = Mutex::new(vec![
            Ok(vec![SocketAddr::from(([10, 0, 0, 2], 0))]),
            Ok(Vec::new()),
            Err(io::Error::other("no resolver")),
            Ok(vec![SocketAddr::from(([10, 0, 0, 1], 0))]),
            Err(io::Error::other("no resolver")),
        ]);
        let next = move |_| -> Found {
            let answer = answers.lock().unwrap().pop();
            Box::pin(async move {
                match answer {
                    Some(answer) => answer,
                    None => std::future::pending().await,
                }
            })
        };
        let telemetry = Arc::<Telemetry>::default();
        let limit = Duration::from_millis(10);
        let names = Names::new(&Config::default(), limit, next, &telemetry).unwrap();
        assert_eq!(ask(&names, "a").await, "no resolver");
        assert_eq!(ask(&names, "a").await, "10.0.0.1");
        assert_eq!(ask(&names, "a").await, "10.0.0.1");
        assert_eq!(ask(&names, "a").await, "10.0.0.1", "no address is no answer");
        assert_eq!(ask(&names, "a").await, "10.0.0.2");
        assert_eq!(ask(&names, "a").await, "10.0.0.2", "it hangs");
        assert_eq!(ask(&names, "b").await, io::Error::from(io::ErrorKind::TimedOut).to_string());
        assert_eq!((telemetry.dns_failures.get(), telemetry.dns_fallbacks.get()), (5, 0));
    }

    #[tokio::test]
    async fn fallback_resolvers_are_asked_when_the_system_fails() {
        let v4 = server(Answer::V4([10, 1, 1, 1]));
        let v6 = server(Answer::V6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]));
        let failure = server(Answer::ServerFailure);
        let unknown = server(Answer::NoSuchName);
        let silence = server(Answer::Silence);
        for (servers, expected) in [
            (vec![&*v4], "10.1.1.1"),
            (vec![&*v6], "fd00::7"),
            (vec![&*failure, &*v4], "10.1.1.1"),
            (vec![&*unknown, &*v4], "10.1.1.1"),
            (vec![&*silence, &*v4], "10.1.1.1"),
            (vec![&*failure], "no resolver"),
            (vec![&*unknown], "no resolver"),
        ] {
            let telemetry = Arc::<Telemetry>::default();
            let names = names(&servers, failing, &telemetry);
            assert_eq!(ask(&names, "intake.example").await, expected, "{servers:?}");
            let answered = u64::from(expected != "no resolver");
            assert_eq!(telemetry.dns_failures.get(), 1);
            assert_eq!(telemetry.dns_fallbacks.get(), answered);
        }
    }

    #[tokio::test]
    async fn last_addresses_come_before_those_of_the_fallback() {
        let telemetry = Arc::<Telemetry>::default();
        let server = server(Answer::V4([10, 1, 1, 1]));
        let known = names(&[&server], once([10, 0, 0, 9]), &telemetry);
        assert_eq!(ask(&known, "intake.example").await, "10.0.0.9");
        assert_eq!(telemetry.dns_fallbacks.get(), 0, "the system answered");
        assert_eq!(ask(&known, "intake.example").await, "10.0.0.9 10.1.1.1");
        // The same address is not tried twice.
        let known = names(&[&server], once([10, 1, 1, 1]), &telemetry);
        for _ in 0..2 {
            assert_eq!(ask(&known, "intake.example").await, "10.1.1.1");
        }
    }

    #[test]
    fn addresses_of_resolvers() {
        for (text, expected) in [
            ("9.9.9.9", Some("9.9.9.9:53")),
            ("9.9.9.9:5353", Some("9.9.9.9:5353")),
            ("fd00::1", Some("[fd00::1]:53")),
            ("[fd00::1]:1", Some("[fd00::1]:1")),
            ("9.9.9.9:0", None),
            ("dns.example", None),
            ("", None),
        ] {
            let found = resolver_address(text).map(|address| address.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }
}
