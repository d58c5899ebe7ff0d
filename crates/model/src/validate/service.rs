//! Services: with a virtual address, headless, or standing for a name outside.
//!
//! Whether an address is free and in the cluster's range is not to be seen here: the front door looks at that when it
//! gives the address out.

use core::net::Ipv4Addr;

use pb::objects::{Service, ServicePort, ServiceSpec};

use super::{container, meta, named, one_of};
use crate::{
    error::{Errors, FieldPath},
    names,
    service::{CLUSTER_IP, EXTERNAL_NAME, HEADLESS, is_virtual},
};

const TYPES: &[&str] = &[CLUSTER_IP, EXTERNAL_NAME];

pub(super) fn check(service: &Service, errors: &mut Errors) {
    let path = FieldPath::of("spec");
    let spec = service.spec.clone().unwrap_or_default();
    match spec.r#type.as_str() {
        CLUSTER_IP => cluster_ip(&spec, &path, errors),
        EXTERNAL_NAME => external_name(&spec, &path, errors),
        other @ ("NodePort" | "LoadBalancer") => {
            let why = "Berth opens no ports on its nodes: use type ClusterIP; from outside, `berth port-forward` reaches the pods";
            errors.not_supported_because(&path.child("type"), other, TYPES, why);
        }
        other => one_of(other, TYPES, &path.child("type"), errors),
    }
    meta::labels(&spec.selector, &path.child("selector"), errors);
    ports(&spec.ports, &path.child("ports"), errors);
}

fn cluster_ip(spec: &ServiceSpec, path: &FieldPath, errors: &mut Errors) {
    address(spec, path, errors);
    if !spec.external_name.is_empty() {
        errors.forbidden(&path.child("externalName"), "only with `type: ExternalName`: leave one of the two out");
    }
    if !is_virtual(spec) {
        return;
    }
    if spec.ports.is_empty() {
        errors.required(
            &path.child("ports"),
            "a virtual address leads nowhere without ports; `clusterIP: None` makes a headless Service, which needs none",
        );
    }
    if spec.selector.is_empty() {
        errors.required(
            &path.child("selector"),
            "Berth has no Endpoints written by hand: without a selector nothing would ever stand behind the address",
        );
    }
}

fn address(spec: &ServiceSpec, path: &FieldPath, errors: &mut Errors) {
    let at = path.child("clusterIP");
    match spec.cluster_ip.as_str() {
        "" | HEADLESS => {}
        other if other.parse::<Ipv4Addr>().is_ok() => {}
        other => errors.invalid(
            &at,
            other,
            "must be `None` (headless), an IPv4 address of the cluster's --service-cidr, or left out to be given one",
        ),
    }
    if !spec.cluster_ips.is_empty() && spec.cluster_ips != [spec.cluster_ip.clone()] {
        errors.invalid(
            &path.child("clusterIPs"),
            spec.cluster_ips.clone(),
            "must hold the value of `clusterIP` and no other: leave it out",
        );
    }
}

fn external_name(spec: &ServiceSpec, path: &FieldPath, errors: &mut Errors) {
    let at = path.child("externalName");
    let name = spec.external_name.strip_suffix('.').unwrap_or(&spec.external_name);
    if name.parse::<Ipv4Addr>().is_ok() {
        errors.invalid(&at, name, "must be a DNS name, not an address");
    } else {
        named(name, names::dns_subdomain, &at, errors);
    }
    let none = "must be left out with `type: ExternalName`: such a Service has no address";
    if !spec.cluster_ip.is_empty() {
        errors.forbidden(&path.child("clusterIP"), none);
    }
    if !spec.cluster_ips.is_empty() {
        errors.forbidden(&path.child("clusterIPs"), none);
    }
}

/// An address is for life, unless the Service becomes one of another type.
pub(super) fn update(old: &Service, new: &Service, errors: &mut Errors) {
    let (Some(old), Some(new)) = (&old.spec, &new.spec) else { return };
    let stays = old.r#type == CLUSTER_IP && new.r#type == CLUSTER_IP;
    if stays && !old.cluster_ip.is_empty() && old.cluster_ip != new.cluster_ip {
        errors.invalid(
            &FieldPath::of("spec.clusterIP"),
            new.cluster_ip.as_str(),
            "field is immutable; to change it, delete the Service and create it again",
        );
    }
}

fn ports(ports: &[ServicePort], path: &FieldPath, errors: &mut Errors) {
    for (index, port) in ports.iter().enumerate() {
        let at = path.index(index);
        let before = || ports.iter().take(index);
        if !port.name.is_empty() {
            named(&port.name, names::dns_label, &at.child("name"), errors);
        } else if ports.len() > 1 {
            errors.required(&at.child("name"), "needed when there is more than one port");
        }
        if !port.name.is_empty() && before().any(|other| other.name == port.name) {
            errors.duplicate(&at.child("name"), port.name.as_str());
        }
        if before().any(|other| (other.port, &other.protocol) == (port.port, &port.protocol)) {
            errors.duplicate(&at, format!("{}/{}", port.port, port.protocol));
        }
        container::port_number(port.port, &at.child("port"), errors);
        one_of(&port.protocol, &["TCP", "UDP", "SCTP"], &at.child("protocol"), errors);
        if (1..=65535).contains(&port.port) {
            container::port_reference(port.target_port.as_ref(), &at.child("targetPort"), errors);
        }
    }
}
