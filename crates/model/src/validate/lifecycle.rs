//! Probes and hooks: what is asked of containers and told to them while they live.

use pb::objects::{ExecAction, HttpGetAction, Lifecycle, LifecycleHandler, Probe};

use super::{container::port_reference, not_negative, one_of};
use crate::error::{Errors, FieldPath};

/// What a probe is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// Whether the container shall be ended, or has begun: one success is enough.
    Life,
    /// Whether the container can serve.
    Readiness,
}

pub(super) fn probe(probe: &Probe, asks: Asks, path: &FieldPath, errors: &mut Errors) {
    let handlers = [probe.exec.is_some(), probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.grpc.is_some()];
    one_handler(&handlers, "exec, httpGet, tcpSocket or grpc", path, errors);
    exec(probe.exec.as_ref(), &path.child("exec"), errors);
    http_get(probe.http_get.as_ref(), &path.child("httpGet"), errors);
    if let Some(socket) = &probe.tcp_socket {
        port_reference(socket.port.as_ref(), &path.child("tcpSocket").child("port"), errors);
    }
    if let Some(grpc) = probe.grpc.as_ref().filter(|grpc| !(1..=65535).contains(&grpc.port)) {
        errors.invalid(&path.child("grpc").child("port"), grpc.port, "must be between 1 and 65535, inclusive");
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
    if asks == Asks::Life && probe.success_threshold > 1 {
        errors.invalid(&path.child("successThreshold"), probe.success_threshold, "must be 1");
    }
    let grace = path.child("terminationGracePeriodSeconds");
    match (probe.termination_grace_period_seconds, asks) {
        (Some(seconds), Asks::Life) if seconds <= 0 => errors.invalid(&grace, seconds, "must be greater than 0"),
        (Some(_), Asks::Readiness) => {
            errors.forbidden(&grace, "a readiness probe ends no container: leave the field out");
        }
        _ => {}
    }
}

/// Hooks of a container whose pod has so many seconds to stop.
pub(super) fn hooks(lifecycle: &Lifecycle, grace: i64, path: &FieldPath, errors: &mut Errors) {
    for (field, hook) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
        if let Some(hook) = hook {
            handler(hook, grace, &path.child(field), errors);
        }
    }
}

fn handler(hook: &LifecycleHandler, grace: i64, path: &FieldPath, errors: &mut Errors) {
    let handlers = [hook.exec.is_some(), hook.http_get.is_some(), hook.sleep.is_some()];
    one_handler(&handlers, "exec, httpGet or sleep", path, errors);
    exec(hook.exec.as_ref(), &path.child("exec"), errors);
    http_get(hook.http_get.as_ref(), &path.child("httpGet"), errors);
    if let Some(sleep) = hook.sleep.as_ref().filter(|sleep| !(0..=grace).contains(&sleep.seconds)) {
        let why = format!("must be between 0 and the pod's terminationGracePeriodSeconds ({grace})");
        errors.invalid(&path.child("sleep").child("seconds"), sleep.seconds, why);
    }
}

fn one_handler(set: &[bool], which: &str, path: &FieldPath, errors: &mut Errors) {
    match set.iter().filter(|set| **set).count() {
        0 => errors.required(path, format!("must specify a handler: {which}")),
        1 => {}
        _ => errors.forbidden(path, "may not specify more than 1 handler"),
    }
}

fn exec(action: Option<&ExecAction>, path: &FieldPath, errors: &mut Errors) {
    if action.is_some_and(|exec| exec.command.is_empty()) {
        errors.required(&path.child("command"), "");
    }
}

fn http_get(action: Option<&HttpGetAction>, path: &FieldPath, errors: &mut Errors) {
    let Some(get) = action else { return };
    port_reference(get.port.as_ref(), &path.child("port"), errors);
    // Hooks get no defaults written: empty is HTTP.
    if !get.scheme.is_empty() {
        one_of(&get.scheme, &["HTTP", "HTTPS"], &path.child("scheme"), errors);
    }
    for (index, header) in get.http_headers.iter().enumerate() {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if header.name.is_empty() || !header.name.bytes().all(token) {
            let at = path.child("httpHeaders").index(index).child("name");
            errors.invalid(&at, header.name.as_str(), "must be a name of an HTTP header (such as X-Header)");
        }
    }
}
