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
