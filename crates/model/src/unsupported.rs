//! Fields that Kubernetes has and Berth does not have yet.
//!
//! Two lists. [`is_known`]: the field is refused with "not supported by Berth yet" instead of "unknown field", so that
//! nobody looks for a typing error. [`says_what_is_so`]: a value that asks for exactly what Berth does anyway (manifests
//! written out by Kubernetes carry its defaults) is dropped without loss.

use serde_json::Value;

/// Fields of Kubernetes' messages that Berth's messages of the same name lack.
const KNOWN: &[(&str, &[&str])] = &[
    ("ObjectMeta", &["managedFields", "selfLink", "clusterName"]),
    ("LabelSelector", &[]),
    (
        "PodSpec",
        &[
            "automountServiceAccountToken",
            "enableServiceLinks",
            "ephemeralContainers",
            "hostIPC",
            "hostNetwork",
            "hostPID",
            "hostUsers",
            "hostnameOverride",
            "os",
            "overhead",
            "resourceClaims",
            "resources",
            "runtimeClassName",
            "schedulerName",
            "schedulingGates",
            "serviceAccount",
            "serviceAccountName",
            "workloadRef",
        ],
    ),
    ("PodStatus", OF_A_PODS_STATUS),
    ("ContainerStatus", OF_A_CONTAINERS_STATUS),
    ("SeccompProfile", &["localhostProfile"]),
    ("Lifecycle", &["stopSignal"]),
    ("LifecycleHandler", &["tcpSocket"]),
    ("VolumeProjection", &["clusterTrustBundle", "podCertificate", "serviceAccountToken"]),
    (
        "PodSecurityContext",
        &["appArmorProfile", "seLinuxChangePolicy", "seLinuxOptions", "supplementalGroupsPolicy", "windowsOptions"],
    ),
    ("SecurityContext", &["appArmorProfile", "procMount", "seLinuxOptions", "windowsOptions"]),
    ("Container", &["resizePolicy", "restartPolicyRules", "volumeDevices"]),
    ("EnvVarSource", &["fileKeyRef"]),
    ("ResourceRequirements", &["claims"]),
    ("VolumeMount", &["mountPropagation", "recursiveReadOnly"]),
    ("Probe", &[]),
    (
        "Volume",
        &[
            "awsElasticBlockStore",
            "azureDisk",
            "azureFile",
            "cephfs",
            "cinder",
            "csi",
            "ephemeral",
            "fc",
            "flexVolume",
            "flocker",
            "gcePersistentDisk",
            "gitRepo",
            "glusterfs",
            "image",
            "iscsi",
            "nfs",
            "photonPersistentDisk",
            "portworxVolume",
            "quobyte",
            "rbd",
            "scaleIO",
            "storageos",
            "vsphereVolume",
        ],
    ),
    ("PersistentVolumeClaimSpec", &["volumeAttributesClassName"]),
    ("PersistentVolumeClaimStatus", &["currentVolumeAttributesClassName", "modifyVolumeStatus", "resizeStatus"]),
    ("TypedLocalObjectReference", &["namespace"]),
    (
        "PersistentVolumeSpec",
        &["hostPath", "local", "nfs", "volumeAttributesClassName", "iscsi", "fc", "cephfs", "rbd"],
    ),
    (
        "CsiPersistentVolumeSource",
        &[
            "controllerExpandSecretRef",
            "controllerPublishSecretRef",
            "nodeExpandSecretRef",
            "nodePublishSecretRef",
            "nodeStageSecretRef",
        ],
    ),
    ("VolumeAttachmentSource", &["inlineVolumeSpec"]),
    ("VolumeError", &["errorCode"]),
    (
        "CsiDriverSpec",
        &["nodeAllocatableUpdatePeriodSeconds", "seLinuxMount", "serviceAccountTokenInSecrets", "tokenRequests"],
    ),
    ("VolumeSnapshotSpec", &["volumeSnapshotClassName"]),
    ("VolumeSnapshotSource", &["volumeSnapshotContentName"]),
    ("VolumeSnapshotStatus", &["boundVolumeSnapshotContentName", "volumeGroupSnapshotName"]),
    (
        "ServiceSpec",
        &[
            "allocateLoadBalancerNodePorts",
            "externalIPs",
            "externalTrafficPolicy",
            "healthCheckNodePort",
            "internalTrafficPolicy",
            "ipFamilies",
            "ipFamilyPolicy",
            "loadBalancerClass",
            "loadBalancerIP",
            "loadBalancerSourceRanges",
            "sessionAffinity",
            "sessionAffinityConfig",
            "trafficDistribution",
        ],
    ),
    ("ServicePort", &["nodePort"]),
    ("Service", &["status"]),
    ("Namespace", &["spec"]),
    ("NodeSpec", &["configSource", "externalID", "podCIDRs", "providerID"]),
    ("NodeSelectorTerm", &["matchFields"]),
    ("PodDisruptionBudgetStatus", &["disruptedPods"]),
];

const OF_A_PODS_STATUS: &[&str] = &[
    "allocatedResources",
    "ephemeralContainerStatuses",
    "extendedResourceClaimStatus",
    "hostIPs",
    "resize",
    "resourceClaimStatuses",
    "resources",
];
const OF_A_CONTAINERS_STATUS: &[&str] =
    &["allocatedResources", "allocatedResourcesStatus", "resources", "stopSignal", "user", "volumeMounts"];

/// Whether Kubernetes' message of this name has the field.
pub fn is_known(message: &str, field: &str) -> bool {
    KNOWN.iter().any(|(name, fields)| *name == message && fields.contains(&field))
}

/// What to do instead of an unsupported field, where there is something.
pub fn instead(message: &str, field: &str) -> Option<&'static str> {
    Some(match (message, field) {
        ("VolumeSnapshotSpec", "volumeSnapshotClassName") => {
            "Berth has no classes of snapshots, the driver of the claim's volume makes them: leave the field out"
        }
        ("VolumeSnapshotSource", "volumeSnapshotContentName") => {
            "Berth has no objects for snapshots made outside of it: name the claim in persistentVolumeClaimName, and a \
             snapshot of its volume is made"
        }
        ("PersistentVolumeSpec", "hostPath" | "local" | "nfs" | "iscsi" | "fc" | "cephfs" | "rbd") => {
            "volumes come from CSI drivers alone: describe it under csi; the drivers local and shared are built in"
        }
        ("PodSpec", "serviceAccount" | "serviceAccountName" | "automountServiceAccountToken")
        | ("VolumeProjection", "serviceAccountToken" | "clusterTrustBundle" | "podCertificate") => {
            "pods have no accounts: programs that talk to Berth use its gRPC API; leave the field out"
        }
        ("PodSpec", "hostNetwork") => {
            "pods have networks of their own: leave the field out, and open ports of the node with ports[].hostPort"
        }
        ("PodSpec", "hostIPC" | "hostPID") => "pods do not share the node's own processes: leave the field out",
        ("PodSpec", "schedulerName") => "there is one scheduler: leave the field out, or write default-scheduler",
        ("PodSpec", "ephemeralContainers") => {
            "containers are not added to pods that run: use `berth exec`, or a sidecar"
        }
        ("PodSpec", "os") | ("PodSecurityContext" | "SecurityContext", "windowsOptions") => {
            "containers run on Linux alone: leave the field out"
        }
        ("LifecycleHandler", "tcpSocket") => "Kubernetes does nothing with it either: use exec, httpGet or sleep",
        ("Volume", "csi" | "image") => return None,
        ("Volume", _) => {
            "volumes come from CSI drivers alone: name a claim in persistentVolumeClaim, or add a claim template to the set"
        }
        ("TypedLocalObjectReference", "namespace") => {
            "a claim begins with data of its own namespace only: leave the field out"
        }
        _ => return None,
    })
}

/// Whether the value of an unsupported field asks for what is so anyway: an empty value, or what Berth always does.
pub fn says_what_is_so(message: &str, field: &str, value: &Value) -> bool {
    match value {
        Value::Null => return true,
        Value::Array(items) if items.is_empty() => return true,
        _ => {}
    }
    let is = |text: &str| value.as_str() == Some(text);
    let no = value.as_bool() == Some(false);
    match (message, field) {
        // Kept by Kubernetes' server for itself.
        ("ObjectMeta", "managedFields" | "selfLink") => true,
        ("PodSpec", "schedulerName") => is("default-scheduler"),
        // Services are found by DNS alone: no pod gets variables about them.
        ("PodSpec", "enableServiceLinks") => value.is_boolean(),
        // No pod has a service account or its token.
        ("PodSpec", "automountServiceAccountToken") => no,
        ("PodSpec", "serviceAccount" | "serviceAccountName") => is("default"),
        ("PodSpec", "hostIPC" | "hostNetwork" | "hostPID") => no,
        ("PodSpec", "hostUsers") => value.as_bool() == Some(true),
        ("PodSpec", "os") => *value == serde_json::json!({"name": "linux"}),
        ("VolumeMount", "mountPropagation") => is("None"),
        ("SecurityContext", "procMount") => is("Default"),
        ("PodSecurityContext", "supplementalGroupsPolicy") => is("Merge"),
        ("ServiceSpec", "sessionAffinity") => is("None"),
        ("ServiceSpec", "internalTrafficPolicy") => is("Cluster"),
        ("ServiceSpec", "ipFamilyPolicy") => is("SingleStack"),
        ("ServiceSpec", "ipFamilies") => *value == serde_json::json!(["IPv4"]),
        ("Service", "status") => true,
        ("Namespace", "spec") => true,
        // A client's own status is not looked at.
        ("PodDisruptionBudgetStatus", "disruptedPods") => true,
        ("PodStatus" | "ContainerStatus", _) => true,
        ("PersistentVolumeClaimStatus" | "VolumeSnapshotStatus" | "VolumeError", _) => true,
        ("CsiDriverSpec", "seLinuxMount") => no,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use pb::schema::{Message, Shape};

    use super::*;

    /// A field that was added to `proto/` must leave the list, or nobody would ever be told that it is supported now.
    #[test]
    fn what_is_supported_is_not_listed() {
        fn visit(message: &'static Message, seen: &mut Vec<&'static str>) {
            if seen.contains(&message.name) {
                return;
            }
            seen.push(message.name);
            for field in message.fields {
                assert!(!is_known(message.name, field.name), "{}.{}", message.name, field.name);
                if let Shape::Message(inner) = field.shape {
                    visit(inner, seen);
                }
            }
        }
        let mut seen = Vec::new();
        for kind in pb::Kind::ALL {
            visit(pb::schema::of(kind), &mut seen);
        }
        for (name, _) in KNOWN {
            assert!(seen.contains(name), "there is no message {name}");
        }
    }
}
