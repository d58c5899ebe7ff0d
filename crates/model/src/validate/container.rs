//! Containers: ports, environment, mounts, probes.

use pb::objects::{Container, ContainerPort, EnvVar, IntOrString, Probe, VolumeMount, int_or_string};

use super::{named, not_negative, one_of, resources};
use crate::{
    error::{Errors, FieldPath},
    names,
};

/// Fields of a pod that a variable may take its value from.
const POD_FIELDS: [&str; 7] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "status.hostIP",
    "status.podIP",
    "status.podIPs",
];

/// Checks a container that may mount `volumes`.
pub(super) fn check(container: &Container, init: bool, volumes: &[&str], path: &FieldPath, errors: &mut Errors) {
    named(&container.name, names::dns_label, &path.child("name"), errors);
    let image = path.child("image");
    if container.image.is_empty() {
        errors.required(&image, "");
    } else if container.image.trim() != container.image {
        errors.invalid(&image, container.image.as_str(), "must not have leading or trailing whitespace");
    }
    let policy = path.child("imagePullPolicy");
    match container.image_pull_policy.as_str() {
        "Always" => {
            let why = "images are loaded onto the nodes and never pulled: use IfNotPresent";
            errors.not_supported_because(&policy, "Always", &["IfNotPresent", "Never"], why);
        }
        other => one_of(other, &["IfNotPresent", "Never"], &policy, errors),
    }
    for (index, port) in container.ports.iter().enumerate() {
        check_port(port, &path.child("ports").index(index), errors);
    }
    for (index, variable) in container.env.iter().enumerate() {
        check_env(variable, &path.child("env").index(index), errors);
    }
    if let Some(amounts) = &container.resources {
        resources::container(&amounts.requests, &amounts.limits, &path.child("resources"), errors);
    }
    mounts(&container.volume_mounts, volumes, &path.child("volumeMounts"), errors);
    let probes = [
        ("livenessProbe", &container.liveness_probe, true),
        ("readinessProbe", &container.readiness_probe, false),
        ("startupProbe", &container.startup_probe, true),
    ];
    for (field, probe, once) in probes {
        match probe {
            Some(_) if init => errors.forbidden(&path.child(field), "may not be set for init containers"),
            Some(probe) => check_probe(probe, once, &path.child(field), errors),
            None => {}
        }
    }
    if let Some(context) = &container.security_context {
        let at = path.child("securityContext");
        not_negative(context.run_as_user.unwrap_or(0), &at.child("runAsUser"), errors);
        not_negative(context.run_as_group.unwrap_or(0), &at.child("runAsGroup"), errors);
    }
}

/// A name of a port means one port in the whole pod.
pub(super) fn duplicate_port_names(containers: &[Container], path: &FieldPath, errors: &mut Errors) {
    let mut seen = Vec::new();
    for (index, container) in containers.iter().enumerate() {
        for (at, port) in container.ports.iter().enumerate().filter(|(_, port)| !port.name.is_empty()) {
            if seen.contains(&&port.name) {
                let at = path.index(index).child("ports").index(at);
                errors.duplicate(&at.child("name"), port.name.as_str());
            }
            seen.push(&port.name);
        }
    }
}

fn check_port(port: &ContainerPort, path: &FieldPath, errors: &mut Errors) {
    if !port.name.is_empty() {
        named(&port.name, names::port_name, &path.child("name"), errors);
    }
    port_number(port.container_port, &path.child("containerPort"), errors);
    one_of(&port.protocol, &["TCP", "UDP", "SCTP"], &path.child("protocol"), errors);
}

/// A port's number.
pub(super) fn port_number(port: i32, path: &FieldPath, errors: &mut Errors) {
    match port {
        0 => errors.required(path, "a number between 1 and 65535"),
        1..=65535 => {}
        _ => errors.invalid(path, port, "must be between 1 and 65535, inclusive"),
    }
}

/// A port by number or name.
pub(super) fn port_reference(port: Option<&IntOrString>, path: &FieldPath, errors: &mut Errors) {
    match port.and_then(|port| port.kind.as_ref()) {
        Some(int_or_string::Kind::IntValue(number)) if (1..=65535).contains(number) => {}
        Some(int_or_string::Kind::IntValue(number)) => {
            errors.invalid(path, *number, "must be between 1 and 65535, inclusive");
        }
        Some(int_or_string::Kind::StringValue(name)) => {
            if let Err(broken) = names::port_name(name) {
                errors.invalid(path, name.as_str(), broken);
            }
        }
        None => errors.required(path, "the number or the name of a port"),
    }
}

/// A variable of the environment.
pub(super) fn check_env(variable: &EnvVar, path: &FieldPath, errors: &mut Errors) {
    named(&variable.name, names::env_name, &path.child("name"), errors);
    let Some(source) = &variable.value_from else { return };
    let at = path.child("valueFrom");
    if !variable.value.is_empty() {
        errors.invalid(&at, "", "may not be specified when `value` is not empty");
    }
    let sources = [source.field_ref.is_some(), source.config_map_key_ref.is_some(), source.secret_key_ref.is_some()];
    if sources.iter().filter(|set| **set).count() != 1 {
        errors.invalid(&at, "", "must have exactly one of fieldRef, configMapKeyRef and secretKeyRef");
    }
    if let Some(field) = &source.field_ref {
        field_path(&field.field_path, &at.child("fieldRef").child("fieldPath"), errors);
    }
    for (name, key) in [("configMapKeyRef", &source.config_map_key_ref), ("secretKeyRef", &source.secret_key_ref)] {
        if let Some(key) = key {
            let at = at.child(name);
            named(&key.name, names::dns_subdomain, &at.child("name"), errors);
            named(&key.key, names::config_key, &at.child("key"), errors);
        }
    }
}

fn field_path(text: &str, path: &FieldPath, errors: &mut Errors) {
    let subscript = |map: &str| {
        let key = text.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']")?;
        names::label_key(key).ok()
    };
    if text.is_empty() {
        errors.required(path, "");
    } else if !POD_FIELDS.contains(&text)
        && subscript("metadata.labels").or(subscript("metadata.annotations")).is_none()
    {
        let forms = ["metadata.labels['KEY']", "metadata.annotations['KEY']"];
        let supported: Vec<_> = POD_FIELDS.into_iter().chain(forms).collect();
        errors.not_supported(path, text, &supported);
    }
}

fn mounts(mounts: &[VolumeMount], volumes: &[&str], path: &FieldPath, errors: &mut Errors) {
    let mut seen = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        let at = path.index(index);
        let name = at.child("name");
        if mount.name.is_empty() {
            errors.required(&name, "");
        } else if !volumes.contains(&mount.name.as_str()) {
            let why = if volumes.is_empty() {
                "the pod has no volumes".to_owned()
            } else {
                format!("the pod's volumes are {}", volumes.join(", "))
            };
            errors.not_found(&name, &mount.name, why);
        }
        let to = at.child("mountPath");
        if mount.mount_path.is_empty() {
            errors.required(&to, "");
        } else if !mount.mount_path.starts_with('/') {
            errors.invalid(&to, mount.mount_path.as_str(), "must be an absolute path");
        } else if seen.contains(&&mount.mount_path) {
            errors.invalid(&to, mount.mount_path.as_str(), "must be unique");
        }
        seen.push(&mount.mount_path);
    }
}

fn check_probe(probe: &Probe, once: bool, path: &FieldPath, errors: &mut Errors) {
    let handlers = [probe.exec.is_some(), probe.http_get.is_some(), probe.tcp_socket.is_some()];
    match handlers.iter().filter(|set| **set).count() {
        0 => errors.required(path, "must specify a handler: exec, httpGet or tcpSocket"),
        1 => {}
        _ => errors.forbidden(path, "may not specify more than 1 handler"),
    }
    if probe.exec.as_ref().is_some_and(|exec| exec.command.is_empty()) {
        errors.required(&path.child("exec").child("command"), "");
    }
    if let Some(get) = &probe.http_get {
        let at = path.child("httpGet");
        port_reference(get.port.as_ref(), &at.child("port"), errors);
        one_of(&get.scheme, &["HTTP"], &at.child("scheme"), errors);
        for (index, header) in get.http_headers.iter().enumerate() {
            let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            if header.name.is_empty() || !header.name.bytes().all(token) {
                let at = at.child("httpHeaders").index(index).child("name");
                errors.invalid(&at, header.name.as_str(), "must be a name of an HTTP header (such as X-Header)");
            }
        }
    }
    if let Some(socket) = &probe.tcp_socket {
        port_reference(socket.port.as_ref(), &path.child("tcpSocket").child("port"), errors);
    }
    let numbers = [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ];
    for (field, value) in numbers {
        not_negative(value, &path.child(field), errors);
    }
    if once && probe.success_threshold > 1 {
        errors.invalid(&path.child("successThreshold"), probe.success_threshold, "must be 1");
    }
}
