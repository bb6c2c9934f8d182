//! Who may look: this machine's own users, and whoever has the token.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// What a request is judged by.
#[derive(Clone, Debug)]
pub struct Guard {
    /// Empty when nobody else may look.
    token: Arc<str>,
}

impl Guard {
    pub fn new(token: &str) -> Self {
        Self { token: token.into() }
    }

    /// A request from the loopback is fine if it also asks for the loopback: a page of another site
    /// whose name was made to lead here does not.
    fn allows(&self, from: IpAddr, uri: &Uri, headers: &HeaderMap) -> bool {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = uri.host().or(host).unwrap_or_default();
        from.to_canonical().is_loopback() && is_loopback(host) || self.has_token(uri, headers)
    }

    fn has_token(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = bearer.and_then(|value| value.strip_prefix("Bearer "));
        let mut parameters = uri.query().unwrap_or_default().split('&');
        let parameter = parameters.find_map(|pair| pair.strip_prefix("token="));
        let given = bearer.or(parameter).unwrap_or_default();
        !self.token.is_empty() && same(given.as_bytes(), self.token.as_bytes())
    }
}

/// Takes as long for a wrong token as for the right one.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(address, _)| address),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The same address for who looks into the parameters; `None` when it has no token.
fn without_token(uri: &Uri) -> Option<Uri> {
    let query = uri.query().filter(|query| query.contains("token="))?;
    let rest: Vec<_> = query.split('&').filter(|pair| !pair.starts_with("token=")).collect();
    format!("{}?{}", uri.path(), rest.join("&")).parse().ok()
}

/// Lets a request through, or says who may ask.
pub async fn check(
    State(guard): State<Guard>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    if guard.allows(from.ip(), request.uri(), request.headers()) {
        if let Some(uri) = without_token(request.uri()) {
            *request.uri_mut() = uri;
        }
        return next.run(request).await;
    }
    let help = "this page is for http://127.0.0.1 and http://localhost on this machine; for others \
                set status.token, and send it as \"Authorization: Bearer TOKEN\" or ?token=TOKEN\n";
    (StatusCode::FORBIDDEN, help).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_no_parameter() {
        for (uri, expected) in [
            ("/api/series?text=a&token=s3&limit=1", Some("/api/series?text=a&limit=1")),
            ("/?token=s3", Some("/?")),
            ("/api/series?text=token=&x=1", Some("/api/series?text=token=&x=1")),
            ("/api/series?limit=1", None),
            ("/", None),
        ] {
            let found = without_token(&uri.parse().unwrap()).map(|uri| uri.to_string());
            assert_eq!(found.as_deref(), expected, "{uri}");
        }
    }

    #[test]
    fn own_users_and_holders_of_the_token_may_look() {
        let allows = |token: &str, from: &str, host: &str, uri: &str, bearer: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if !bearer.is_empty() {
                headers.insert(header::AUTHORIZATION, bearer.parse().unwrap());
            }
            Guard::new(token).allows(from.parse().unwrap(), &uri.parse().unwrap(), &headers)
        };
        for (token, from, host, uri, bearer, expected) in [
            ("", "127.0.0.1", "127.0.0.1:8127", "/", "", true),
            ("", "127.0.0.1", "localhost:8127", "/", "", true),
            ("", "::1", "[::1]:8127", "/", "", true),
            ("", "::ffff:127.0.0.1", "LOCALHOST", "/", "", true),
            ("", "127.0.0.1", "evil.example:8127", "/", "", false),
            ("", "127.0.0.1", "localhost.evil.example", "/", "", false),
            ("", "127.0.0.1", "", "/", "", false),
            ("", "10.0.0.7", "127.0.0.1:8127", "/", "", false),
            ("", "10.0.0.7", "10.0.0.1:8127", "/?token=", "Bearer ", false),
            ("s3", "10.0.0.7", "10.0.0.1:8127", "/?a=b&token=s3", "", true),
            ("s3", "10.0.0.7", "10.0.0.1:8127", "/", "Bearer s3", true),
            ("s3", "10.0.0.7", "10.0.0.1:8127", "/?token=s4", "", false),
            ("s3", "10.0.0.7", "10.0.0.1:8127", "/", "", false),
        ] {
            let found = allows(token, from, host, uri, bearer);
            assert_eq!(found, expected, "{token:?} {from} {host} {uri} {bearer:?}");
        }
    }
}
