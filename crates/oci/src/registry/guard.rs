//! Which addresses a registry may send us to: never from outside to this machine or its link.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::{IpAddr, SocketAddr};
use url::{Host, Url};

/// Tells addresses of this machine and of its link (cloud metadata services live there).
pub(super) fn is_inward(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_broadcast(),
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(mapped) => is_inward(IpAddr::V4(mapped)),
            None => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified(),
        },
    }
}

/// A test of addresses; tests put their own in place of [`is_inward`], having no public address.
pub(super) type Inward = fn(IpAddr) -> bool;

/// Tells if a redirect to a host is refused by its text alone; names are looked at when they are resolved.
pub(super) fn names_inward(url: &Url, inward: Inward) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => inward(IpAddr::V4(ip)),
        Some(Host::Ipv6(ip)) => inward(IpAddr::V6(ip)),
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        None => true,
    }
}

/// Resolves names to outward addresses alone.
pub(super) struct OutwardResolver {
    pub(super) inward: Inward,
}

impl Resolve for OutwardResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let inward = self.inward;
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let all: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            if is_proxy(&host) {
                return Ok(Box::new(all.into_iter()) as Addrs);
            }
            let outward: Vec<_> = all.iter().copied().filter(|a| !inward(a.ip())).collect();
            if outward.is_empty() && !all.is_empty() {
                return Err(format!("redirect to {host} refused: its address is of this machine or its link").into());
            }
            Ok(Box::new(outward.into_iter()) as Addrs)
        })
    }
}

/// The variables that name proxies.
const PROXIES: [&str; 6] = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// Tells if the environment names a proxy.
pub(super) fn has_proxy() -> bool {
    PROXIES.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// Tells if a host is the proxy of the environment, which may well be on this machine.
fn is_proxy(host: &str) -> bool {
    PROXIES.iter().any(|name| {
        let Ok(value) = std::env::var(name) else { return false };
        let value = if value.contains("://") { value } else { format!("http://{value}") };
        Url::parse(&value).is_ok_and(|url| url.host_str() == Some(host))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_machine_are_inward() {
        for ip in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "169.254.169.254", "fe80::1", "0.0.0.0", "::"] {
            assert!(is_inward(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["192.0.2.1", "10.0.0.1", "2001:db8::1"] {
            assert!(!is_inward(ip.parse().unwrap()), "{ip}");
        }
        for url in
            ["http://localhost/", "http://a.localhost/", "http://localhost./", "http://2130706433/", "http://0x7f.1/"]
        {
            assert!(names_inward(&Url::parse(url).unwrap(), is_inward), "{url}");
        }
        assert!(!names_inward(&Url::parse("http://localhost.test/").unwrap(), is_inward));
    }
}
