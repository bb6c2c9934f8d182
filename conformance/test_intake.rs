//! A Datadog intake for tests: it records what it gets, decoded by [`super::datadog_payload`], and
//! answers as told. It runs on a thread of its own, so blocking and async tests can use it alike,
//! until it is dropped.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;
use tokio::sync::oneshot;

use super::datadog_payload::{Body, decode};

/// Bytes of a request's body, at most.
const BODY_MAX: usize = 64 << 20;

pub struct Intake {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What a client sent.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// With the query, if there was one.
    pub path: String,
    pub headers: HeaderMap,
    /// Bytes of the body as they came, compressed.
    pub size: usize,
    pub body: Result<Body, String>,
}

impl Request {
    /// Empty when it was not sent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// What the intake answers.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    /// How long the client waits for it.
    pub delay: Duration,
}

impl Response {
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), delay: Duration::ZERO }
    }
}

type Answer = dyn FnMut(&Request) -> Response + Send;

struct Shared {
    requests: Mutex<Vec<Request>>,
    arrived: Condvar,
    answer: Mutex<Box<Answer>>,
}

impl Intake {
    /// Listens on a free port and answers 200 to GET, 202 to everything else.
    pub fn start() -> Self {
        Self::on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
    }

    /// The same with a listener of the test's own.
    pub fn on(listener: TcpListener) -> Self {
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer =
            |request: &Request| Response::status(if request.method == "GET" { 200 } else { 202 });
        let shared = Arc::new(Shared {
            requests: Mutex::default(),
            arrived: Condvar::new(),
            answer: Mutex::new(Box::new(answer)),
        });
        let (stop, stopped) = oneshot::channel();
        let app = axum::Router::new().fallback(handle).with_state(Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    _ = axum::serve(listener, app) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { url, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// Decides all further answers; the requests so far are not asked again.
    pub fn respond_with(&self, answer: impl FnMut(&Request) -> Response + Send + 'static) {
        *self.shared.answer.lock().unwrap() = Box::new(answer);
    }

    /// Everything received so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Waits until the requests so far satisfy the predicate, and returns them. Panics after
    /// `deadline`.
    pub fn wait_for(
        &self,
        deadline: Duration,
        predicate: impl Fn(&[Request]) -> bool,
    ) -> Vec<Request> {
        let requests = self.shared.requests.lock().unwrap();
        let (requests, timeout) = self
            .shared
            .arrived
            .wait_timeout_while(requests, deadline, |requests| !predicate(requests))
            .unwrap();
        assert!(!timeout.timed_out(), "not within {deadline:?}; received: {requests:#?}");
        requests.clone()
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        drop(self.stop.take());
        let stopped = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(stopped, Some(Ok(()))));
    }
}

async fn handle(
    State(shared): State<Arc<Shared>>,
    request: axum::extract::Request,
) -> impl IntoResponse {
    let (head, body) = request.into_parts();
    let bytes = axum::body::to_bytes(body, BODY_MAX).await.unwrap_or_default();
    let encoding = head.headers.get(header::CONTENT_ENCODING).and_then(|v| v.to_str().ok());
    let request = Request {
        method: head.method.to_string(),
        path: head.uri.to_string(),
        size: bytes.len(),
        body: decode(head.uri.path(), encoding.unwrap_or_default(), &bytes),
        headers: head.headers,
    };
    let response = shared.answer.lock().unwrap()(&request);
    shared.requests.lock().unwrap().push(request);
    shared.arrived.notify_all();
    tokio::time::sleep(response.delay).await;
    let mut builder = axum::http::Response::builder().status(response.status);
    for (name, value) in response.headers {
        builder = builder.header(name, value);
    }
    builder.body(axum::body::Body::from(r#"{"status":"ok"}"#)).unwrap()
}
