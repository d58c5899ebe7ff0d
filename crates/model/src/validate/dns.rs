//! How a pod finds others by name: the policy of its resolver, and lines of its /etc/hosts.

use core::net::IpAddr;

use pb::objects::{HostAlias, PodDnsConfig};

use super::named;
use crate::{
    error::{Errors, FieldPath},
    names,
};

/// What the resolvers of the C libraries take.
const MOST_NAMESERVERS: usize = 3;
const MOST_SEARCHES: usize = 32;
const LONGEST_SEARCHES: usize = 2048;

/// Checks a policy (ClusterFirst when empty) and what a pod adds to it.
pub(super) fn check(policy: &str, config: Option<&PodDnsConfig>, path: &FieldPath, errors: &mut Errors) {
    let at = path.child("dnsPolicy");
    let supported = ["ClusterFirst", "Default", "None"];
    match policy {
        "" | "ClusterFirst" | "Default" | "None" => {}
        "ClusterFirstWithHostNet" => {
            let why = "pods have networks of their own, where ClusterFirst is the same";
            errors.not_supported_because(&at, policy, &supported, why);
        }
        other => errors.not_supported(&at, other, &supported),
    }
    let at = path.child("dnsConfig");
    if policy == "None" && config.is_none_or(|config| config.nameservers.is_empty()) {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.required(&at.child("nameservers"), why);
    }
    if let Some(config) = config {
        self::config(config, &at, errors);
    }
}

fn config(config: &PodDnsConfig, path: &FieldPath, errors: &mut Errors) {
    let at = path.child("nameservers");
    if config.nameservers.len() > MOST_NAMESERVERS {
        errors.invalid(
            &at,
            config.nameservers.len(),
            format!("must not have more than {MOST_NAMESERVERS} nameservers"),
        );
    }
    for (index, server) in config.nameservers.iter().enumerate() {
        address(server, &at.index(index), errors);
    }
    let at = path.child("searches");
    if config.searches.len() > MOST_SEARCHES {
        errors.invalid(&at, config.searches.len(), format!("must not have more than {MOST_SEARCHES} search paths"));
    }
    let length = config.searches.join(" ").len();
    if length > LONGEST_SEARCHES {
        let why =
            format!("must not have more than {LONGEST_SEARCHES} characters (including spaces) in the search list");
        errors.invalid(&at, length, why);
    }
    for (index, search) in config.searches.iter().enumerate() {
        // A dot alone is the root; one at the end changes nothing.
        let bare = search.strip_suffix('.').unwrap_or(search);
        if search != "." {
            named(bare, search_path, &at.index(index), errors);
        }
    }
    for (index, option) in config.options.iter().enumerate() {
        if option.name.is_empty() {
            errors.required(&path.child("options").index(index).child("name"), "");
        }
    }
}

/// A DNS name in which underscores are taken too, as Windows' domains have them.
fn search_path(text: &str) -> Result<(), names::Broken> {
    names::dns_subdomain(&text.replace('_', "x"))
}

pub(super) fn host_aliases(aliases: &[HostAlias], path: &FieldPath, errors: &mut Errors) {
    for (index, alias) in aliases.iter().enumerate() {
        let at = path.index(index);
        address(&alias.ip, &at.child("ip"), errors);
        for (place, name) in alias.hostnames.iter().enumerate() {
            named(name, names::dns_subdomain, &at.child("hostnames").index(place), errors);
        }
    }
}

/// An address of IPv4 or IPv6.
pub(super) fn address(text: &str, path: &FieldPath, errors: &mut Errors) {
    if text.is_empty() {
        errors.required(path, "an IP address such as 10.9.8.7");
    } else if text.parse::<IpAddr>().is_err() {
        errors.invalid(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}
