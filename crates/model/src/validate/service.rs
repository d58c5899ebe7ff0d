//! Services. Only headless ones exist so far, and none is silently made headless: a Service without `clusterIP` would
//! have a virtual address in Kubernetes, so it is refused here.

use pb::objects::{Service, ServicePort};

use super::{container, meta, named, one_of};
use crate::{
    error::{Errors, FieldPath},
    names,
};

pub(super) fn check(service: &Service, errors: &mut Errors) {
    let path = FieldPath::of("spec");
    let spec = service.spec.clone().unwrap_or_default();
    let address = path.child("clusterIP");
    match spec.cluster_ip.as_str() {
        "None" => {}
        "" => errors.forbidden(
            &address,
            "only headless Services are supported by Berth yet: write `clusterIP: None` (without it Kubernetes gives a virtual address)",
        ),
        other => errors.not_supported_because(&address, other, &["None"], "only headless Services are supported by Berth yet"),
    }
    match spec.r#type.as_str() {
        "NodePort" | "LoadBalancer" | "ExternalName" => {
            let why = format!("only headless Services are supported by Berth yet, not {}", spec.r#type);
            errors.not_supported_because(&path.child("type"), &spec.r#type, &["ClusterIP"], &why);
        }
        other => one_of(other, &["ClusterIP"], &path.child("type"), errors),
    }
    meta::labels(&spec.selector, &path.child("selector"), errors);
    ports(&spec.ports, &path.child("ports"), errors);
}

fn ports(ports: &[ServicePort], path: &FieldPath, errors: &mut Errors) {
    for (index, port) in ports.iter().enumerate() {
        let at = path.index(index);
        if !port.name.is_empty() {
            named(&port.name, names::dns_label, &at.child("name"), errors);
        } else if ports.len() > 1 {
            errors.required(&at.child("name"), "needed when there is more than one port");
        }
        if !port.name.is_empty() && ports[..index].iter().any(|other| other.name == port.name) {
            errors.duplicate(&at.child("name"), port.name.as_str());
        }
        container::port_number(port.port, &at.child("port"), errors);
        one_of(&port.protocol, &["TCP", "UDP", "SCTP"], &at.child("protocol"), errors);
        if (1..=65535).contains(&port.port) {
            container::port_reference(port.target_port.as_ref(), &at.child("targetPort"), errors);
        }
    }
}
