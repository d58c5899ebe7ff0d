//! Who a container runs as, and what it may do.
//!
//! What the container says wins over what its pod says. What neither says is as in Kubernetes, but for seccomp: the
//! runtime's own profile unless the agent was told otherwise.

use std::collections::HashMap;

use k8s_cri::v1 as cri;
use pb::objects::{Capabilities, Container, PodSpec, SeccompProfile, SecurityContext};

/// Who an image runs as if its container does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageUser {
    /// A number; 0 if the image says nothing.
    Number(i64),
    /// A name, which only the image itself can translate.
    Name(String),
}

impl From<&cri::Image> for ImageUser {
    fn from(image: &cri::Image) -> Self {
        match &image.uid {
            Some(uid) => Self::Number(uid.value),
            None if image.username.is_empty() => Self::Number(0),
            None => Self::Name(image.username.clone()),
        }
    }
}

/// Why a container that must not run as root is not started. The sentences are Kubernetes'.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunsAsRoot {
    /// It asks for both.
    #[error("container's runAsUser breaks non-root policy (container: {0}): set runAsUser to another number than 0")]
    AsAsked(String),
    /// The image says so, or says nothing.
    #[error("container has runAsNonRoot and image will run as root (container: {0}): set runAsUser")]
    AsImage(String),
    /// A name may stand for any number.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root \
         (container: {container}): set runAsUser"
    )]
    Unverifiable {
        /// The user's name.
        user: String,
        /// The container.
        container: String,
    },
}

/// The namespaces of all that runs in a pod.
fn namespaces(spec: &PodSpec) -> cri::NamespaceOption {
    let shared = spec.share_process_namespace.unwrap_or(false);
    let pid = if shared { cri::NamespaceMode::Pod } else { cri::NamespaceMode::Container };
    cri::NamespaceOption {
        network: cri::NamespaceMode::Pod.into(),
        pid: pid.into(),
        ipc: cri::NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

/// What holds for the sandbox. A privileged container is only let into a privileged sandbox.
pub(super) fn of_sandbox(spec: &PodSpec) -> cri::LinuxSandboxSecurityContext {
    let mut containers = spec.init_containers.iter().chain(&spec.containers);
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(spec)),
        privileged: containers.any(|container| is_privileged(container.security_context.as_ref())),
        supplemental_groups: groups(spec),
        seccomp: Some(profile(cri::security_profile::ProfileType::RuntimeDefault)),
        ..Default::default()
    }
}

/// Kernel settings of the pod, under the names that the kernel's files have with dots for slashes.
pub(super) fn sysctls(spec: &PodSpec) -> HashMap<String, String> {
    let context = spec.security_context.as_ref();
    let all = context.into_iter().flat_map(|context| &context.sysctls);
    all.map(|sysctl| (dotted(&sysctl.name), sysctl.value.clone())).collect()
}

/// `net/ipv4/conf/eth0.1/forwarding` is `net.ipv4.conf.eth0/1.forwarding`: whichever comes first separates.
fn dotted(name: &str) -> String {
    if name.find(['.', '/']).is_none_or(|at| name[at..].starts_with('.')) {
        return name.to_owned();
    }
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(swap).collect()
}

/// The groups of all containers beside their own.
fn groups(spec: &PodSpec) -> Vec<i64> {
    let Some(context) = &spec.security_context else { return Vec::new() };
    context.fs_group.into_iter().chain(context.supplemental_groups.iter().copied()).collect()
}

fn is_privileged(context: Option<&SecurityContext>) -> bool {
    context.is_some_and(|context| context.privileged.unwrap_or(false))
}

/// What holds for a container of an image that runs as `image`.
pub(super) fn of_container(
    spec: &PodSpec,
    container: &Container,
    image: &ImageUser,
    seccomp_default: bool,
) -> Result<cri::LinuxContainerSecurityContext, RunsAsRoot> {
    let none = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&none);
    let pod = spec.security_context.as_ref();
    let user = own.run_as_user.or_else(|| pod.and_then(|pod| pod.run_as_user));
    let group = own.run_as_group.or_else(|| pod.and_then(|pod| pod.run_as_group));
    if own.run_as_non_root.or_else(|| pod.and_then(|pod| pod.run_as_non_root)).unwrap_or(false) {
        not_root(&container.name, user, image)?;
    }
    let privileged = is_privileged(Some(own));
    let asked = own.seccomp_profile.as_ref().or_else(|| pod.and_then(|pod| pod.seccomp_profile.as_ref()));
    let number = |value: i64| cri::Int64Value { value };
    // CRI takes a group only together with a user: then the image's has to be named.
    let (user, name) = match (user, group, image) {
        (Some(user), ..) => (Some(user), String::new()),
        (None, None, _) => (None, String::new()),
        (None, Some(_), ImageUser::Number(user)) => (Some(*user), String::new()),
        (None, Some(_), ImageUser::Name(name)) => (None, name.clone()),
    };
    Ok(cri::LinuxContainerSecurityContext {
        namespace_options: Some(namespaces(spec)),
        capabilities: own.capabilities.as_ref().map(capabilities),
        privileged,
        run_as_user: user.map(number),
        run_as_username: name,
        run_as_group: group.map(number),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: groups(spec),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED_PATHS, privileged),
        readonly_paths: paths(&READONLY_PATHS, privileged),
        seccomp: Some(seccomp(asked, privileged, seccomp_default)),
        ..Default::default()
    })
}

fn not_root(container: &str, user: Option<i64>, image: &ImageUser) -> Result<(), RunsAsRoot> {
    let container = container.to_owned();
    match (user, image) {
        (Some(0), _) => Err(RunsAsRoot::AsAsked(container)),
        (Some(_), _) => Ok(()),
        (None, ImageUser::Number(0)) => Err(RunsAsRoot::AsImage(container)),
        (None, ImageUser::Number(_)) => Ok(()),
        (None, ImageUser::Name(user)) => Err(RunsAsRoot::Unverifiable { user: user.clone(), container }),
    }
}

fn capabilities(wanted: &Capabilities) -> cri::Capability {
    // The runtime puts CAP_ before each.
    let bare = |name: &String| name.strip_prefix("CAP_").unwrap_or(name).to_owned();
    cri::Capability {
        add_capabilities: wanted.add.iter().map(bare).collect(),
        drop_capabilities: wanted.drop.iter().map(bare).collect(),
        ..Default::default()
    }
}

/// A privileged container has no profile, whatever it asks for.
fn seccomp(asked: Option<&SeccompProfile>, privileged: bool, default: bool) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType::{RuntimeDefault, Unconfined};
    profile(match asked.map(|asked| asked.r#type.as_str()) {
        _ if privileged => Unconfined,
        Some("Unconfined") => Unconfined,
        Some("RuntimeDefault") => RuntimeDefault,
        _ if default => RuntimeDefault,
        _ => Unconfined,
    })
}

fn profile(kind: cri::security_profile::ProfileType) -> cri::SecurityProfile {
    cri::SecurityProfile { profile_type: kind.into(), ..Default::default() }
}

fn paths(paths: &[&str], privileged: bool) -> Vec<String> {
    if privileged { Vec::new() } else { paths.iter().map(|path| (*path).to_owned()).collect() }
}

/// What containers do not see of the kernel, as in every container runtime's default.
const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// What containers only read.
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

#[cfg(test)]
mod tests {
    use cri::security_profile::ProfileType;
    use pb::objects::{PodSecurityContext, Sysctl};

    use super::*;

    const ROOT: ImageUser = ImageUser::Number(0);

    fn of(pod: PodSecurityContext, own: SecurityContext, image: &ImageUser) -> Result<Made, RunsAsRoot> {
        let spec = PodSpec { security_context: Some(pod), ..Default::default() };
        let container = Container { name: "main".into(), security_context: Some(own), ..Default::default() };
        of_container(&spec, &container, image, true)
    }

    type Made = cri::LinuxContainerSecurityContext;

    fn kind(made: &Made) -> ProfileType {
        made.seccomp.as_ref().unwrap().profile_type()
    }

    #[test]
    fn a_container_that_must_not_be_root_is_not() {
        let strict = || PodSecurityContext { run_as_non_root: Some(true), ..Default::default() };
        let own = |run_as_user| SecurityContext { run_as_user, ..Default::default() };
        let says = |user, image: &ImageUser| of(strict(), own(user), image).map(drop).map_err(|e| e.to_string());
        assert!(says(None, &ROOT).unwrap_err().starts_with("container has runAsNonRoot and image will run as root"));
        assert!(says(Some(0), &ImageUser::Number(5)).unwrap_err().contains("runAsUser breaks non-root policy"));
        let named = ImageUser::Name("redis".into());
        assert!(says(None, &named).unwrap_err().contains("non-numeric user (redis)"));
        assert_eq!(says(Some(7), &named), Ok(()));
        assert_eq!(says(None, &ImageUser::Number(7)), Ok(()));
        let exempt = SecurityContext { run_as_non_root: Some(false), ..Default::default() };
        assert!(of(strict(), exempt, &ROOT).is_ok(), "the container's own word wins");
    }

    #[test]
    fn a_group_without_a_user_goes_with_the_images_user() {
        let group = |image: &ImageUser| {
            let own = SecurityContext { run_as_group: Some(9), ..Default::default() };
            let made = of(PodSecurityContext::default(), own, image).unwrap();
            (made.run_as_user.map(|user| user.value), made.run_as_username, made.run_as_group.map(|group| group.value))
        };
        assert_eq!(group(&ImageUser::Number(5)), (Some(5), String::new(), Some(9)));
        assert_eq!(group(&ImageUser::Name("redis".into())), (None, "redis".into(), Some(9)));
        let plain = of(PodSecurityContext::default(), SecurityContext::default(), &ImageUser::Number(5)).unwrap();
        assert_eq!(plain.run_as_user, None, "the image's own group would be lost");
    }

    #[test]
    fn the_group_of_the_volumes_is_one_of_all_containers() {
        let pod = PodSecurityContext { fs_group: Some(1000), supplemental_groups: vec![5, 6], ..Default::default() };
        assert_eq!(of(pod, SecurityContext::default(), &ROOT).unwrap().supplemental_groups, [1000, 5, 6]);
    }

    #[test]
    fn seccomp_is_the_runtimes_profile_unless_somebody_says_otherwise() {
        let profile = |text: &str| Some(SeccompProfile { r#type: text.into() });
        let pod = |text| PodSecurityContext { seccomp_profile: profile(text), ..Default::default() };
        let own = |text| SecurityContext { seccomp_profile: profile(text), ..Default::default() };
        let none = SecurityContext::default;
        assert_eq!(kind(&of(PodSecurityContext::default(), none(), &ROOT).unwrap()), ProfileType::RuntimeDefault);
        assert_eq!(kind(&of(pod("Unconfined"), none(), &ROOT).unwrap()), ProfileType::Unconfined);
        assert_eq!(kind(&of(pod("Unconfined"), own("RuntimeDefault"), &ROOT).unwrap()), ProfileType::RuntimeDefault);
        let container = Container { name: "main".into(), ..Default::default() };
        let made = of_container(&PodSpec::default(), &container, &ROOT, false).unwrap();
        assert_eq!(kind(&made), ProfileType::Unconfined, "an agent that was told so does as Kubernetes");
    }

    #[test]
    fn a_privileged_container_sees_everything_and_its_sandbox_lets_it_in() {
        let own = SecurityContext {
            privileged: Some(true),
            seccomp_profile: Some(SeccompProfile { r#type: "RuntimeDefault".into() }),
            ..Default::default()
        };
        let container = Container { security_context: Some(own), ..Default::default() };
        let spec = PodSpec { init_containers: vec![container.clone()], ..Default::default() };
        let made = of_container(&spec, &container, &ROOT, true).unwrap();
        assert!(made.privileged && made.masked_paths.is_empty() && made.readonly_paths.is_empty());
        assert_eq!(kind(&made), ProfileType::Unconfined);
        assert!(of_sandbox(&spec).privileged);
        assert!(!of_sandbox(&PodSpec::default()).privileged);
    }

    #[test]
    fn the_rest_is_handed_on() {
        let own = SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { add: vec!["CAP_NET_ADMIN".into()], drop: vec!["ALL".into()] }),
            ..Default::default()
        };
        let made = of(PodSecurityContext::default(), own, &ROOT).unwrap();
        assert!(made.no_new_privs && made.readonly_rootfs);
        let capabilities = made.capabilities.unwrap();
        assert_eq!((capabilities.add_capabilities[0].as_str(), capabilities.drop_capabilities.len()), ("NET_ADMIN", 1));
        assert!(!of(PodSecurityContext::default(), SecurityContext::default(), &ROOT).unwrap().no_new_privs);
        let shared = PodSpec { share_process_namespace: Some(true), ..Default::default() };
        assert_eq!(namespaces(&shared).pid(), cri::NamespaceMode::Pod);
        assert_eq!(namespaces(&PodSpec::default()).pid(), cri::NamespaceMode::Container);
    }

    #[test]
    fn kernel_settings_are_named_with_dots() {
        let sysctl = |name: &str| Sysctl { name: name.into(), value: "1".into() };
        let context = PodSecurityContext {
            sysctls: vec![sysctl("net.core.somaxconn"), sysctl("net/ipv4/conf/eth0.1/forwarding")],
            ..Default::default()
        };
        let mut names: Vec<_> =
            sysctls(&PodSpec { security_context: Some(context), ..Default::default() }).into_keys().collect();
        names.sort();
        assert_eq!(names, ["net.core.somaxconn", "net.ipv4.conf.eth0/1.forwarding"]);
    }
}
