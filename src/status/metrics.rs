//! `/metrics`: the exposition page, written as it is sent.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use http_body::Frame;
use tokio::sync::OwnedSemaphorePermit;

use super::Status;
use crate::encode::exposition::CONTENT_TYPE;
use crate::sinks::prometheus::Snapshot;

/// Bytes that are written at once; a series more or less.
const PIECE: usize = 64 * 1024;

/// What is still to be sent.
struct Page {
    users: Option<Snapshot>,
    own: Option<String>,
    /// Of all pages under way, since each holds something.
    _permit: OwnedSemaphorePermit,
}

/// The page as of now. With many series this takes a while.
pub(super) fn page(status: &Status, permit: OwnedSemaphorePermit) -> Response {
    let users = status.prometheus.as_ref().map(|prometheus| prometheus.snapshot());
    let page = Page { users, own: Some(status.own_metrics()), _permit: permit };
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], Body::new(page)).into_response()
}

impl http_body::Body for Page {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut piece = String::new();
        if let Some(users) = &mut self.users
            && !users.write(&mut piece, PIECE)
        {
            self.users = None;
        }
        if self.users.is_none()
            && let Some(own) = self.own.take()
        {
            piece.push_str(&own);
        }
        let piece = (!piece.is_empty()).then(|| Ok(Frame::data(piece.into())));
        Poll::Ready(piece)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use axum::body::to_bytes;
    use http_body::Body as _;

    use super::super::tests::status_with;
    use super::*;
    use crate::batch::{Batch, Row, Value};
    use crate::context::{self, Source};
    use crate::sample::Kind;
    use crate::sinks::Sink;
    use crate::sinks::prometheus::{Config, Prometheus};

    #[tokio::test]
    async fn a_large_page_comes_in_pieces_and_is_whole() {
        let prometheus = Prometheus::new(&Config::default(), "", Arc::default()).unwrap();
        let row = |i: i32| {
            let tags = vec![format!("instance:i-{i:07}")];
            let name = format!("family.{}", i % 7);
            let context = context::Context::new(&name, Kind::Gauge, "", tags, Source::default());
            Row { context, time: 10, value: Value::Gauge(i.into()) }
        };
        let rows = (0..10_000).map(row).collect();
        let batch = Arc::new(Batch { flushed_at: 20, interval: 10, rows, ..Batch::default() });
        let payload = prometheus.encode(&batch).payloads.remove(0);
        prometheus.send(0, &payload).await;
        let status = status_with(Some(Arc::new(prometheus)));
        let get = || page(&status, Arc::clone(&status.pages).try_acquire_owned().unwrap());

        let whole = to_bytes(get().into_body(), usize::MAX).await.unwrap();
        let users = status.prometheus.as_ref().unwrap().page();
        assert!(users.lines().count() == 10_000 + 7 && users.len() > 4 * PIECE);
        assert!(whole.starts_with(users.as_bytes()));
        assert!(whole[users.len()..].starts_with(b"# HELP tallyd_"));

        let mut body = get().into_body();
        let (mut longest, mut length) = (0, 0);
        while let Some(piece) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let piece = piece.unwrap().into_data().unwrap();
            length += piece.len();
            longest = longest.max(if length <= users.len() { piece.len() } else { 0 });
        }
        assert!((PIECE..PIECE + 1000).contains(&longest), "{longest}");
        drop(body);
        assert_eq!(status.pages.available_permits(), super::super::UNDER_WAY_MAX);
    }
}
