//! Containers: image, ports, environment, mounts; who may have probes and hooks.

use pb::objects::{Container, ContainerPort, IntOrString, VolumeMount, int_or_string};

use super::{
    dns, env,
    lifecycle::{self, Asks},
    named, one_of, resources, security, volume,
};
use crate::{
    error::{Errors, FieldPath},
    names,
};

/// What a container is in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// One of those that the pod is there for.
    Main,
    /// Runs to its end before the others start.
    Init,
    /// Starts among the init containers and runs on.
    Sidecar,
}

impl Role {
    /// What a container is, by the list that it stands in.
    pub(super) fn of(container: &Container, among_init: bool) -> Self {
        match (among_init, container.restart_policy.as_str()) {
            (false, _) => Role::Main,
            (true, "Always") => Role::Sidecar,
            (true, _) => Role::Init,
        }
    }
}

/// Checks a container that may mount `volumes`, in a pod that has `grace` seconds to stop.
pub(super) fn check(
    container: &Container,
    role: Role,
    grace: i64,
    volumes: &[&str],
    path: &FieldPath,
    errors: &mut Errors,
) {
    named(&container.name, names::dns_label, &path.child("name"), errors);
    let image = path.child("image");
    if container.image.is_empty() {
        errors.required(&image, "");
    } else if container.image.trim() != container.image {
        errors.invalid(&image, container.image.as_str(), "must not have leading or trailing whitespace");
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    one_of(&container.image_pull_policy, &policies, &path.child("imagePullPolicy"), errors);
    let restart = path.child("restartPolicy");
    match (role, container.restart_policy.as_str()) {
        (_, "") | (Role::Sidecar, _) => {}
        (Role::Main, _) => errors.forbidden(&restart, "may not be set for non-init containers"),
        (Role::Init, other) => errors.not_supported(&restart, other, &["Always"]),
    }
    for (index, port) in container.ports.iter().enumerate() {
        check_port(port, &path.child("ports").index(index), errors);
    }
    for (index, variable) in container.env.iter().enumerate() {
        env::variable(variable, &path.child("env").index(index), errors);
    }
    for (index, source) in container.env_from.iter().enumerate() {
        env::from(source, &path.child("envFrom").index(index), errors);
    }
    if let Some(amounts) = &container.resources {
        resources::container(&amounts.requests, &amounts.limits, &path.child("resources"), errors);
    }
    mounts(&container.volume_mounts, volumes, &path.child("volumeMounts"), errors);
    life(container, role, grace, path, errors);
    if let Some(context) = &container.security_context {
        security::container(context, &path.child("securityContext"), errors);
    }
    termination_message(container, path, errors);
}

/// Probes and hooks: for containers that run as long as the pod does.
fn life(container: &Container, role: Role, grace: i64, path: &FieldPath, errors: &mut Errors) {
    const NOT_INIT: &str = "may not be set for init containers without restartPolicy=Always";
    let probes = [
        ("livenessProbe", &container.liveness_probe, Asks::Life),
        ("readinessProbe", &container.readiness_probe, Asks::Readiness),
        ("startupProbe", &container.startup_probe, Asks::Life),
    ];
    for (field, probe, asks) in probes {
        match probe {
            Some(_) if role == Role::Init => errors.forbidden(&path.child(field), NOT_INIT),
            Some(probe) => lifecycle::probe(probe, asks, &path.child(field), errors),
            None => {}
        }
    }
    match &container.lifecycle {
        Some(_) if role == Role::Init => errors.forbidden(&path.child("lifecycle"), NOT_INIT),
        Some(hooks) => lifecycle::hooks(hooks, grace, &path.child("lifecycle"), errors),
        None => {}
    }
}

fn termination_message(container: &Container, path: &FieldPath, errors: &mut Errors) {
    let file = container.termination_message_path.as_str();
    let at = path.child("terminationMessagePath");
    if !file.is_empty() && !file.starts_with('/') {
        errors.invalid(&at, file, "must be an absolute path");
    }
    if file.split('/').any(|part| part == "..") {
        errors.invalid(&at, file, "must not contain '..'");
    }
    let policy = container.termination_message_policy.as_str();
    let policies = ["File", "FallbackToLogsOnError"];
    if !policy.is_empty() && !policies.contains(&policy) {
        errors.not_supported(&path.child("terminationMessagePolicy"), policy, &policies);
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
    if !(0..=65535).contains(&port.host_port) {
        errors.invalid(&path.child("hostPort"), port.host_port, "must be between 1 and 65535, inclusive");
    }
    if !port.host_ip.is_empty() {
        dns::address(&port.host_ip, &path.child("hostIP"), errors);
    }
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
        volume::descending(&mount.sub_path, &at.child("subPath"), errors);
        volume::descending(&mount.sub_path_expr, &at.child("subPathExpr"), errors);
        if !mount.sub_path.is_empty() && !mount.sub_path_expr.is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            errors.invalid(&at.child("subPathExpr"), mount.sub_path_expr.as_str(), why);
        }
    }
}
