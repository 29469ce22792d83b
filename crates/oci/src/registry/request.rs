//! One request to a registry, with authentication and bounded retries.

use super::auth::Authorization;
use super::config::Endpoint;
use super::error::{Problem, is_transient};
use super::transport::{Fetched, Head, read_message};
use super::{Repository, challenge};
use http::header::{AUTHORIZATION, HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::Method;
use std::time::{Duration, SystemTime};
use url::Url;

/// How often a request is sent before its failure is believed.
pub(super) const TRIES: u32 = 5;
/// Longest wait that a server can ask for.
const MAX_WAIT: Duration = Duration::from_secs(60);

impl Repository {
    /// Returns an address below a repository at an endpoint: `manifests/latest`.
    pub(super) fn url(&self, endpoint: &Endpoint, rest: &str) -> Result<Url, Problem> {
        let scheme = if endpoint.plain { "http" } else { "https" };
        let text = format!("{scheme}://{}{}/{}/{rest}", endpoint.host, endpoint.prefix, self.image.path);
        let mut url = Url::parse(&text).map_err(|e| {
            Problem::Address(format!("registry {:?} is no address: {e}", super::printable(&endpoint.host)))
        })?;
        if let Some(namespace) = &endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// Names what a request needs a token for.
    pub(super) fn scopes(&self, actions: &str) -> Vec<String> {
        vec![format!("repository:{}:{actions}", self.image.path)]
    }

    /// Sends a request without a body until it is answered; errors of the server are returned as such.
    ///
    /// Waits and tries again where that may help, and buys a new token once.
    pub(super) async fn call(
        &self,
        endpoint: &Endpoint,
        method: Method,
        url: &Url,
        headers: &HeaderMap,
        scopes: &[String],
    ) -> Result<Fetched, Problem> {
        let transport = &self.client.transport;
        let mut authorization = self.access.remembered(endpoint, scopes);
        let mut renewed = false;
        let mut tries = 0;
        loop {
            let head =
                Head { method: method.clone(), url: url.clone(), headers: with(headers, authorization.as_ref()) };
            let result = transport.fetch(head, &endpoint.settings).await;
            let fetched = match result {
                Ok(fetched) => fetched,
                Err(problem) if problem.is_transient() && tries + 1 < TRIES && !is_refusal(&problem) => {
                    tokio::time::sleep(backoff(tries)).await;
                    tries += 1;
                    continue;
                }
                Err(problem) => return Err(problem),
            };
            let status = fetched.response.status().as_u16();
            if status == 401 && !renewed && super::transport::same_origin(url, &fetched.url) {
                renewed = true;
                self.access.forget(endpoint, scopes);
                authorization = self.answer(endpoint, url, &fetched.response, scopes).await?;
                if authorization.is_some() {
                    continue;
                }
            }
            if is_transient(status) && tries + 1 < TRIES {
                let wait = retry_after(fetched.response.headers()).unwrap_or_else(|| backoff(tries));
                tracing::debug!(status, ?wait, "registry asks to wait");
                tokio::time::sleep(wait).await;
                tries += 1;
                continue;
            }
            if status < 400 {
                return Ok(fetched);
            }
            return Err(self.refusal(endpoint, fetched.response, authorization.and_then(|a| a.user), tries + 1).await);
        }
    }

    /// Answers a 401; none if there is nothing to answer with.
    pub(super) async fn answer(
        &self,
        endpoint: &Endpoint,
        url: &Url,
        response: &reqwest::Response,
        scopes: &[String],
    ) -> Result<Option<Authorization>, Problem> {
        let mut challenges = Vec::new();
        for header in response.headers().get_all(WWW_AUTHENTICATE) {
            challenges
                .extend(challenge::parse(&String::from_utf8_lossy(header.as_bytes())).map_err(Problem::Protocol)?);
        }
        let transport = &self.client.transport;
        let outside = transport.is_outside(url, response.remote_addr());
        self.access.authorize(transport, endpoint, url, outside, &challenges, scopes).await
    }

    /// Turns an error answer into a problem that says what to do.
    pub(super) async fn refusal(
        &self,
        endpoint: &Endpoint,
        response: reqwest::Response,
        user: Option<String>,
        tries: u32,
    ) -> Problem {
        let status = response.status().as_u16();
        let message = read_message(response).await;
        // Docker Hub's login has another name than its host.
        let host = if endpoint.host == "registry-1.docker.io" { "docker.io".into() } else { endpoint.host.clone() };
        match (status, user) {
            (404, _) => Problem::NotFound(message),
            (401 | 403, Some(user)) => Problem::Refused { user, host, status, message },
            (401 | 403, None) => Problem::NotFoundOrPrivate { host, status, message },
            (429, _) => Problem::RateLimited { tries, message },
            _ => Problem::Status { status, message },
        }
    }
}

/// Adds the authorization.
pub(super) fn with(headers: &HeaderMap, authorization: Option<&Authorization>) -> HeaderMap {
    let mut headers = headers.clone();
    if let Some(authorization) = authorization {
        headers.insert(AUTHORIZATION, authorization.header.clone());
    }
    headers
}

/// A refused connection or an unknown name stays so for now; trying again would only keep the user waiting.
pub(super) fn is_refusal(problem: &Problem) -> bool {
    matches!(problem, Problem::Network(text) if text.starts_with("can't connect"))
}

/// Returns how long to wait before the next try.
pub(super) fn backoff(tries: u32) -> Duration {
    Duration::from_millis(250) * 2u32.pow(tries.min(6))
}

/// Reads how long a server asks to wait: seconds or a date, capped; nonsense is as if it weren't there.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => http_date(text)?.duration_since(SystemTime::now()).unwrap_or_default(),
    };
    Some(wait.min(MAX_WAIT))
}

/// Parses `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
fn http_date(text: &str) -> Option<SystemTime> {
    let mut parts = text.split_once(", ")?.1.split([' ', ':']);
    let day: u64 = parts.next()?.parse().ok()?;
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let name = parts.next()?;
    let month = months.iter().position(|m| *m == name)? as u64 + 1;
    let [year, hour, minute, second] = std::array::from_fn(|_| parts.next().and_then(|p| p.parse::<u64>().ok()));
    let (year, hour, minute, second) = (year?, hour?, minute?, second?);
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days from civil: years begin in March, so that the leap day is the last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400 + hour * 3600 + minute * 60 + second))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, text.parse().unwrap());
        retry_after(&headers)
    }

    #[test]
    fn waits_are_capped_and_nonsense_is_none() {
        assert_eq!(wait("2"), Some(Duration::from_secs(2)));
        assert_eq!(wait("999999"), Some(MAX_WAIT));
        assert_eq!(wait("99999999999999999999999"), None);
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("Fri, 06 Nov 2099 08:49:37 GMT"), Some(MAX_WAIT));
        for bad in ["soon", "-1", "Sun, 99 Nov 1994 08:49:37 GMT", "Sun, 06 Foo 1994 08:49:37 GMT", ""] {
            assert_eq!(wait(bad), None, "{bad}");
        }
        let date = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(date.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 784_111_777);
    }
}
