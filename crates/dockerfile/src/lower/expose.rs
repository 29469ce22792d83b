//! `EXPOSE`: `port[-port][/protocol]`; a host's address and port are accepted and warned of.

use super::dispatch::Step;
use super::platform::Lowering;
use crate::fault::Fault;
use crate::lint::{rules, rules::say};
use crate::text::quote::{plain_list, quote};
use bud_image::config::Empty;
use std::net::IpAddr;
use std::ops::RangeInclusive;

impl Lowering<'_> {
    pub(crate) fn expose(&mut self, step: &Step<'_>, written: &[String]) -> Result<(), Fault> {
        let mut words = Vec::new();
        for port in written {
            let expanded = self.lexer.expand(port, &self.stages.list[step.stage].state.env)?;
            self.spend(expanded.text.len())?;
            words.extend(expanded.words);
        }
        let mut ports = Vec::new();
        for word in &words {
            let (range, protocol) = parse(step, word)?;
            // A port takes more in the image than in the text.
            self.spend(range.clone().count() * 64)?;
            ports.extend(range.map(|port| format!("{port}/{protocol}")));
        }
        let map = self.stages.list[step.stage].image.config.exposed_ports.get_or_insert_default();
        map.extend(ports.iter().map(|port| (port.clone(), Empty {})));
        self.record(step.stage, format!("EXPOSE {}", plain_list(&ports)), false)
    }
}

fn parse(step: &Step<'_>, word: &str) -> Result<(RangeInclusive<u32>, String), Fault> {
    let parts: Vec<&str> = word.split(':').collect();
    let (host_ip, host_port, container) = match parts.as_slice() {
        [container] => (String::new(), "", *container),
        [port, container] => (String::new(), *port, *container),
        [ip @ .., port, container] => (ip.join(":"), *port, *container),
        [] => (String::new(), "", ""),
    };
    let (container, protocol) = container.split_once('/').unwrap_or((container, ""));
    let invalid = |what: String| Fault::new(format!("invalid port: {}: {what}", quote(word)));
    if container.is_empty() {
        return Err(invalid("no port specified".into()));
    }
    let lower = protocol.to_lowercase();
    let protocol = match lower.as_str() {
        "" => "tcp",
        "tcp" | "udp" | "sctp" => protocol,
        _ => return Err(invalid(format!("invalid proto: {protocol}"))),
    };
    if protocol != protocol.to_lowercase() {
        step.lint.report(&rules::EXPOSE_PROTO_CASING, &step.origin.place, say::proto_casing(word));
    }
    if !host_ip.is_empty() || !host_port.is_empty() {
        step.lint.report(&rules::EXPOSE_INVALID_FORMAT, &step.origin.place, say::port_mapping(word));
    }
    let bare = host_ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(&host_ip);
    if !bare.is_empty() && bare.parse::<IpAddr>().is_err() {
        return Err(Fault::new(format!("invalid IP address: {bare}")));
    }
    let Some(range) = port_range(container) else {
        return Err(Fault::new(format!("invalid containerPort: {container}")));
    };
    if !host_port.is_empty() {
        let Some(host) = port_range(host_port) else {
            return Err(Fault::new(format!("invalid hostPort: {host_port}")));
        };
        if range.clone().count() != host.count() && range.start() != range.end() {
            return Err(Fault::new(format!(
                "invalid ranges specified for container and host Ports: {container} and {host_port}"
            )));
        }
    }
    Ok((range, protocol.to_lowercase()))
}

fn port_range(text: &str) -> Option<RangeInclusive<u32>> {
    let number = |text: &str| {
        let n = crate::text::number::parse_int(text, 64).ok()?;
        u32::try_from(n).ok().filter(|n| *n <= 65_535)
    };
    match text.split_once('-') {
        Some((start, end)) if start != end => {
            let (start, end) = (number(start)?, number(end)?);
            (start <= end).then_some(start..=end)
        }
        Some((start, _)) => number(start).map(|n| n..=n),
        None => number(text).map(|n| n..=n),
    }
}
