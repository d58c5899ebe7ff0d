//! Who containers run as and what they may do.
//!
//! Whether a container may be privileged at all is not said here: the API service has a policy for that.

use std::collections::BTreeSet;

use pb::objects::{Capabilities, PodSecurityContext, SeccompProfile, SecurityContext, Sysctl};

use super::one_of;
use crate::error::{Errors, FieldPath};

/// Users and groups are what Linux has.
const LARGEST_ID: i64 = i32::MAX as i64;

/// Kernel settings that belong to the pod's own namespaces and harm nobody else: Kubernetes' safe set.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Linux' capabilities, without CAP_.
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

pub(super) fn pod(context: &PodSecurityContext, path: &FieldPath, errors: &mut Errors) {
    id(context.run_as_user, &path.child("runAsUser"), errors);
    id(context.run_as_group, &path.child("runAsGroup"), errors);
    id(context.fs_group, &path.child("fsGroup"), errors);
    for (index, group) in context.supplemental_groups.iter().enumerate() {
        id(Some(*group), &path.child("supplementalGroups").index(index), errors);
    }
    if let Some(policy) = &context.fs_group_change_policy {
        one_of(policy, &["Always", "OnRootMismatch"], &path.child("fsGroupChangePolicy"), errors);
    }
    seccomp(context.seccomp_profile.as_ref(), &path.child("seccompProfile"), errors);
    sysctls(&context.sysctls, &path.child("sysctls"), errors);
}

pub(super) fn container(context: &SecurityContext, path: &FieldPath, errors: &mut Errors) {
    id(context.run_as_user, &path.child("runAsUser"), errors);
    id(context.run_as_group, &path.child("runAsGroup"), errors);
    seccomp(context.seccomp_profile.as_ref(), &path.child("seccompProfile"), errors);
    let capabilities = context.capabilities.clone().unwrap_or_default();
    self::capabilities(&capabilities, &path.child("capabilities"), errors);
    if context.allow_privilege_escalation == Some(false) {
        let at = path.child("allowPrivilegeEscalation");
        if context.privileged == Some(true) {
            errors.invalid(&at, false, "cannot be false while `privileged` is true");
        }
        if capabilities.add.iter().any(|name| name.eq_ignore_ascii_case("SYS_ADMIN")) {
            errors.invalid(&at, false, "cannot be false while `capabilities.add` has SYS_ADMIN");
        }
    }
}

fn id(id: Option<i64>, path: &FieldPath, errors: &mut Errors) {
    if let Some(id) = id.filter(|id| !(0..=LARGEST_ID).contains(id)) {
        errors.invalid(path, id, "must be between 0 and 2147483647, inclusive");
    }
}

fn seccomp(profile: Option<&SeccompProfile>, path: &FieldPath, errors: &mut Errors) {
    let Some(profile) = profile else { return };
    let at = path.child("type");
    let supported = ["RuntimeDefault", "Unconfined"];
    match profile.r#type.as_str() {
        "Localhost" => {
            let why = "profiles of the node's own are not supported by Berth yet";
            errors.not_supported_because(&at, "Localhost", &supported, why);
        }
        other => one_of(other, &supported, &at, errors),
    }
}

fn capabilities(wanted: &Capabilities, path: &FieldPath, errors: &mut Errors) {
    for (field, names) in [("add", &wanted.add), ("drop", &wanted.drop)] {
        for (index, name) in names.iter().enumerate() {
            let mut known = CAPABILITIES.iter().chain(&["ALL"]);
            if !known.any(|known| known.eq_ignore_ascii_case(name)) {
                let why = "must be ALL or one of Linux' capabilities without CAP_, such as NET_BIND_SERVICE";
                errors.invalid(&path.child(field).index(index), name.as_str(), why);
            }
        }
    }
}

fn sysctls(settings: &[Sysctl], path: &FieldPath, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, setting) in settings.iter().enumerate() {
        let at = path.index(index).child("name");
        if setting.name.is_empty() {
            errors.required(&at, "");
        } else if !SAFE_SYSCTLS.contains(&setting.name.as_str()) {
            let why = "others may harm the node's other pods: set them on the node itself";
            errors.not_supported_because(&at, &setting.name, &SAFE_SYSCTLS, why);
        } else if !seen.insert(&setting.name) {
            errors.duplicate(&at, setting.name.as_str());
        }
    }
}
