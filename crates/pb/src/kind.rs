//! The kinds of objects: their names in manifests, on the command line and in the store.

use std::{fmt, str::FromStr};

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names are Kubernetes' own")]
pub enum Kind {
    StatefulSet,
    ControllerRevision,
    Pod,
    Service,
    PersistentVolumeClaim,
    PersistentVolume,
    StorageClass,
    ConfigMap,
    Secret,
    Node,
    Namespace,
    Event,
    PodDisruptionBudget,
    VolumeAttachment,
    CsiDriver,
    VolumeSnapshot,
    PriorityClass,
}

/// No kind has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no kind {0:?}; the kinds are {list}", list = Kind::ALL.map(Kind::name).join(", "))]
pub struct UnknownKind(pub String);

struct Names {
    kind: &'static str,
    api_version: &'static str,
    plural: &'static str,
    short: &'static str,
    namespaced: bool,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 17] = [
        Kind::StatefulSet,
        Kind::ControllerRevision,
        Kind::Pod,
        Kind::Service,
        Kind::PersistentVolumeClaim,
        Kind::PersistentVolume,
        Kind::StorageClass,
        Kind::ConfigMap,
        Kind::Secret,
        Kind::Node,
        Kind::Namespace,
        Kind::Event,
        Kind::PodDisruptionBudget,
        Kind::VolumeAttachment,
        Kind::CsiDriver,
        Kind::VolumeSnapshot,
        Kind::PriorityClass,
    ];

    const fn names(self) -> Names {
        let (kind, api_version, plural, short, namespaced) = match self {
            Kind::StatefulSet => ("StatefulSet", "apps/v1", "statefulsets", "sts", true),
            Kind::ControllerRevision => ("ControllerRevision", "apps/v1", "controllerrevisions", "", true),
            Kind::Pod => ("Pod", "v1", "pods", "po", true),
            Kind::Service => ("Service", "v1", "services", "svc", true),
            Kind::PersistentVolumeClaim => ("PersistentVolumeClaim", "v1", "persistentvolumeclaims", "pvc", true),
            Kind::PersistentVolume => ("PersistentVolume", "v1", "persistentvolumes", "pv", false),
            Kind::StorageClass => ("StorageClass", "storage.k8s.io/v1", "storageclasses", "sc", false),
            Kind::ConfigMap => ("ConfigMap", "v1", "configmaps", "cm", true),
            Kind::Secret => ("Secret", "v1", "secrets", "", true),
            Kind::Node => ("Node", "v1", "nodes", "no", false),
            Kind::Namespace => ("Namespace", "v1", "namespaces", "ns", false),
            Kind::Event => ("Event", "v1", "events", "ev", true),
            Kind::PodDisruptionBudget => ("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets", "pdb", true),
            Kind::VolumeAttachment => ("VolumeAttachment", "storage.k8s.io/v1", "volumeattachments", "", false),
            Kind::CsiDriver => ("CSIDriver", "storage.k8s.io/v1", "csidrivers", "", false),
            Kind::VolumeSnapshot => ("VolumeSnapshot", "snapshot.storage.k8s.io/v1", "volumesnapshots", "vs", true),
            Kind::PriorityClass => ("PriorityClass", "scheduling.k8s.io/v1", "priorityclasses", "pc", false),
        };
        Names { kind, api_version, plural, short, namespaced }
    }

    /// As in a manifest: "StatefulSet".
    pub const fn name(self) -> &'static str {
        self.names().kind
    }

    /// As in a manifest: "apps/v1".
    pub const fn api_version(self) -> &'static str {
        self.names().api_version
    }

    /// As in a key of the store and on the command line: "statefulsets".
    pub const fn plural(self) -> &'static str {
        self.names().plural
    }

    /// As on the command line: "sts"; empty if there is none.
    pub const fn short(self) -> &'static str {
        self.names().short
    }

    /// Whether objects of this kind live in a namespace.
    pub const fn namespaced(self) -> bool {
        self.names().namespaced
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    /// Takes every name that people write: StatefulSet, statefulset, statefulsets, sts.
    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let wanted = text.to_ascii_lowercase();
        let fits = |kind: &Kind| {
            kind.name().eq_ignore_ascii_case(&wanted)
                || kind.plural() == wanted
                || (!wanted.is_empty() && kind.short() == wanted)
        };
        Kind::ALL.into_iter().find(fits).ok_or_else(|| UnknownKind(text.to_owned()))
    }
}
