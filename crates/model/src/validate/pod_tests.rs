//! Pods as Kubernetes takes them, and what it says of those that it does not take.

use serde_json::{Value, json};

use super::tests::{bad, good, updated, with};

/// A pod with one container, two volumes and one of everything that others refer to.
fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {
            "terminationGracePeriodSeconds": 20,
            "volumes": [{"name": "data", "emptyDir": {}}, {"name": "info", "downwardAPI": {"items": []}}],
            "initContainers": [{"name": "first", "image": "i"}, {"name": "beside", "image": "s", "restartPolicy": "Always"}],
            "containers": [{
                "name": "main", "image": "m",
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
        },
    })
}

#[test]
fn what_databases_write_is_taken() {
    let mut pod = pod();
    let probe = json!({"grpc": {"port": 2379, "service": "etcd"}, "terminationGracePeriodSeconds": 5});
    pod["spec"]["containers"][0] = json!({
        "name": "main", "image": "m", "imagePullPolicy": "Always",
        "ports": [
            {"containerPort": 80, "hostPort": 8080}, {"containerPort": 80, "hostPort": 8080, "protocol": "UDP"},
            {"containerPort": 81, "hostPort": 8080, "hostIP": "10.0.0.1"},
        ],
        "env": [
            {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "containerName": "beside", "divisor": "1m"}}},
        ],
        "envFrom": [{"prefix": "DB_", "secretRef": {"name": "db"}}, {"configMapRef": {"name": "more", "optional": true}}],
        "volumeMounts": [
            {"name": "data", "mountPath": "/data", "subPath": "pg/data"},
            {"name": "data", "mountPath": "/log", "subPathExpr": "log/$(POD)"},
            {"name": "all", "mountPath": "/all", "readOnly": true},
        ],
        "livenessProbe": probe, "startupProbe": probe,
        "readinessProbe": {"httpGet": {"port": 8008, "scheme": "HTTPS", "path": "/ready"}},
        "lifecycle": {"postStart": {"httpGet": {"port": 80}}, "preStop": {"sleep": {"seconds": 20}}},
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true, "runAsUser": 1000,
            "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePath": "/tmp/end", "terminationMessagePolicy": "FallbackToLogsOnError",
        "stdin": true, "tty": true,
    });
    pod["spec"]["initContainers"][1]["readinessProbe"] = json!({"exec": {"command": ["true"]}});
    pod["spec"]["initContainers"][1]["lifecycle"] = json!({"preStop": {"exec": {"command": ["true"]}}});
    pod["spec"]["volumes"] = json!([
        {"name": "data", "emptyDir": {}},
        {"name": "host", "hostPath": {"path": "/var/lib/x", "type": "DirectoryOrCreate"}},
        {"name": "all", "projected": {"defaultMode": 0o440, "sources": [
            {"secret": {"name": "tls", "items": [{"key": "tls.crt", "path": "tls/crt"}]}},
            {"configMap": {"name": "conf"}},
            {"downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "cpu", "resourceFieldRef": {"containerName": "main", "resource": "limits.cpu"}},
            ]}},
        ]}},
    ]);
    for (field, value) in [
        (
            "securityContext",
            json!({
                "fsGroup": 1000, "fsGroupChangePolicy": "OnRootMismatch", "supplementalGroups": [1, 2],
                "sysctls": [{"name": "net.ipv4.tcp_keepalive_time", "value": "60"}],
            }),
        ),
        ("hostAliases", json!([{"ip": "10.1.1.1", "hostnames": ["db.example.com"]}, {"ip": "fd00::1"}])),
        ("dnsPolicy", json!("None")),
        (
            "dnsConfig",
            json!({"nameservers": ["1.1.1.1"], "searches": ["x.y.", "."], "options": [{"name": "ndots", "value": "2"}]}),
        ),
        (
            "affinity",
            json!({
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [
                        {"key": "cpus", "operator": "Gt", "values": ["4"]}, {"key": "disk", "operator": "In", "values": ["ssd"]},
                    ]}]},
                    "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": {"matchExpressions": [
                        {"key": "zone", "operator": "Exists"},
                    ]}}],
                },
                "podAntiAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": [{
                        "labelSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["zk"]}]},
                        "topologyKey": "kubernetes.io/hostname",
                    }],
                    "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": {
                        "labelSelector": {"matchLabels": {"app": "zk"}}, "topologyKey": "zone", "matchLabelKeys": ["rev"],
                        "namespaces": ["a"], "namespaceSelector": {},
                    }}],
                },
            }),
        ),
        (
            "tolerations",
            json!([
                {"operator": "Exists"}, {"key": "gpu", "value": "yes", "effect": "NoSchedule"},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            ]),
        ),
        (
            "topologySpreadConstraints",
            json!([
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "minDomains": 2,
                 "labelSelector": {"matchLabels": {"app": "zk"}}, "matchLabelKeys": ["rev"], "nodeTaintsPolicy": "Honor"},
                {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"},
            ]),
        ),
        ("readinessGates", json!([{"conditionType": "example.com/joined"}])),
        ("imagePullSecrets", json!([{"name": "registry"}])),
        ("priorityClassName", json!("high")),
        ("activeDeadlineSeconds", json!(60)),
        ("shareProcessNamespace", json!(true)),
        ("setHostnameAsFQDN", json!(true)),
        ("enableServiceLinks", json!(false)),
        ("serviceAccountName", json!("default")),
    ] {
        pod["spec"][field] = value;
    }
    let object = good(&pod);
    assert_eq!(good(&object.to_json().unwrap()), object, "what was written reads back as the same");
}

/// Each mistake alone, at a place of the pod's spec, and the start of the only error.
#[test]
fn each_mistake_is_named_where_it_stands() {
    let main = "containers/0";
    let node_path = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let terms = |terms: Value| json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}});
    let near = |term: Value| json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}});
    let near_path = "affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]";
    let spread = |with: Value| {
        let mut one = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"});
        with.as_object().unwrap().iter().for_each(|(key, value)| one[key] = value.clone());
        json!([one])
    };
    let dns = |config: Value| ("dnsConfig".to_owned(), config);
    let of = |at: &str, field: &str| format!("{at}/{field}");
    let exec = json!({"exec": {"command": ["true"]}});
    let cases: Vec<((String, Value), String)> = vec![
        // Who may have probes and hooks.
        ((of("initContainers/0", "livenessProbe"), exec.clone()), "initContainers[0].livenessProbe: Forbidden".into()),
        ((of("initContainers/0", "lifecycle"), json!({"preStop": exec.clone()})), "initContainers[0].lifecycle: Forbidden".into()),
        ((of("initContainers/0", "restartPolicy"), json!("Never")), r#"initContainers[0].restartPolicy: Unsupported value: "Never": supported values: "Always""#.into()),
        ((of(main, "restartPolicy"), json!("Always")), "containers[0].restartPolicy: Forbidden".into()),
        ((of(main, "lifecycle"), json!({"preStop": {}})), "containers[0].lifecycle.preStop: Required value: must specify a handler".into()),
        ((of(main, "lifecycle"), json!({"preStop": {"sleep": {"seconds": 21}}})), "containers[0].lifecycle.preStop.sleep.seconds: Invalid value: 21: must be between 0 and the pod's terminationGracePeriodSeconds (20)".into()),
        ((of(main, "lifecycle"), json!({"postStart": {"sleep": {"seconds": 1}, "exec": {"command": ["a"]}}})), "containers[0].lifecycle.postStart: Forbidden".into()),
        ((of(main, "livenessProbe"), json!({"grpc": {"port": 0}})), "containers[0].livenessProbe.grpc.port: Invalid value: 0".into()),
        ((of(main, "livenessProbe"), json!({"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 0})), "containers[0].livenessProbe.terminationGracePeriodSeconds: Invalid".into()),
        ((of(main, "readinessProbe"), json!({"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 9})), "containers[0].readinessProbe.terminationGracePeriodSeconds: Forbidden".into()),
        ((of(main, "readinessProbe"), json!({"httpGet": {"port": 1, "scheme": "FTP"}})), "containers[0].readinessProbe.httpGet.scheme: Unsupported value".into()),
        // Environment.
        ((of(main, "envFrom"), json!([{"prefix": "A"}])), "containers[0].envFrom[0]: Invalid value: \"\": must specify one of".into()),
        ((of(main, "envFrom"), json!([{"prefix": "A=", "secretRef": {"name": "s"}}])), "containers[0].envFrom[0].prefix: Invalid".into()),
        ((of(main, "env"), json!([{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.gpu"}}}])), "containers[0].env[0].valueFrom.resourceFieldRef.resource: Unsupported value".into()),
        ((of(main, "env"), json!([{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1Mi"}}}])), "containers[0].env[0].valueFrom.resourceFieldRef.divisor: Unsupported value".into()),
        ((of(main, "env"), json!([{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "containerName": "x"}}}])), r#"containers[0].env[0].valueFrom.resourceFieldRef.containerName: Not found: "x": the pod's containers are beside, first, main"#.into()),
        ((of(main, "env"), json!([{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels"}}}])), "containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value".into()),
        // Mounts and volumes.
        ((of(main, "volumeMounts"), json!([{"name": "data", "mountPath": "/a", "subPath": "/abs"}])), "containers[0].volumeMounts[0].subPath: Invalid value: \"/abs\": must be a relative path".into()),
        ((of(main, "volumeMounts"), json!([{"name": "data", "mountPath": "/a", "subPath": "a/../b"}])), "containers[0].volumeMounts[0].subPath: Invalid value: \"a/../b\": must not contain '..'".into()),
        ((of(main, "volumeMounts"), json!([{"name": "data", "mountPath": "/a", "subPath": "a", "subPathExpr": "b"}])), "containers[0].volumeMounts[0].subPathExpr: Invalid value: \"b\": subPathExpr and subPath are mutually exclusive".into()),
        (("volumes/1/downwardAPI/items".into(), json!([{"path": "x"}])), "volumes[1].downwardAPI.items[0]: Required value".into()),
        (("volumes/1/downwardAPI/items".into(), json!([{"path": "..data", "fieldRef": {"fieldPath": "metadata.name"}}])), "volumes[1].downwardAPI.items[0].path: Invalid value: \"..data\": must not start with '..'".into()),
        (("volumes/1/downwardAPI/items".into(), json!([{"path": "x", "fieldRef": {"fieldPath": "status.podIP"}}])), "volumes[1].downwardAPI.items[0].fieldRef.fieldPath: Unsupported value".into()),
        (("volumes/1/downwardAPI/items".into(), json!([{"path": "x", "resourceFieldRef": {"resource": "limits.cpu"}}])), "volumes[1].downwardAPI.items[0].resourceFieldRef.containerName: Required value".into()),
        (("volumes/1".into(), json!({"name": "info", "hostPath": {"path": "var"}})), "volumes[1].hostPath.path: Invalid value: \"var\": must be an absolute path".into()),
        (("volumes/1".into(), json!({"name": "info", "hostPath": {"path": "/var/../etc"}})), "volumes[1].hostPath.path: Invalid value: \"/var/../etc\": must not contain '..'".into()),
        (("volumes/1".into(), json!({"name": "info", "hostPath": {"path": "/var", "type": "Folder"}})), "volumes[1].hostPath.type: Unsupported value".into()),
        (("volumes/1".into(), json!({"name": "info", "emptyDir": {}, "hostPath": {"path": "/var"}})), "volumes[1]: Forbidden: may not specify more than 1 volume type".into()),
        (("volumes/1".into(), json!({"name": "info", "projected": {"sources": [{}]}})), "volumes[1].projected.sources[0]: Required value".into()),
        (("volumes/1".into(), json!({"name": "info", "projected": {"sources": [
            {"secret": {"name": "s", "items": [{"key": "k", "path": "same"}]}}, {"configMap": {"name": "c", "items": [{"key": "k", "path": "same"}]}},
        ]}})), "volumes[1].projected.sources[1].configMap.items[0].path: Invalid value: \"same\": conflicting duplicate paths".into()),
        // Rights.
        ((of(main, "securityContext"), json!({"privileged": true, "allowPrivilegeEscalation": false})), "containers[0].securityContext.allowPrivilegeEscalation: Invalid value: false".into()),
        ((of(main, "securityContext"), json!({"runAsUser": 4_294_967_296_i64})), "containers[0].securityContext.runAsUser: Invalid value: 4294967296: must be between 0 and 2147483647".into()),
        ((of(main, "securityContext"), json!({"capabilities": {"add": ["CAP_NET_ADMIN"]}})), "containers[0].securityContext.capabilities.add[0]: Invalid".into()),
        ((of(main, "securityContext"), json!({"seccompProfile": {"type": "Localhost"}})), "containers[0].securityContext.seccompProfile.type: Unsupported value".into()),
        (("securityContext".into(), json!({"sysctls": [{"name": "kernel.msgmax", "value": "1"}]})), "securityContext.sysctls[0].name: Unsupported value".into()),
        (("securityContext".into(), json!({"fsGroupChangePolicy": "Never"})), "securityContext.fsGroupChangePolicy: Unsupported value".into()),
        (("securityContext".into(), json!({"supplementalGroups": [-1]})), "securityContext.supplementalGroups[0]: Invalid".into()),
        // Names.
        (("hostAliases".into(), json!([{"ip": "10.1.1", "hostnames": ["a"]}])), "hostAliases[0].ip: Invalid value: \"10.1.1\"".into()),
        (("dnsPolicy".into(), json!("None")), "dnsConfig.nameservers: Required value".into()),
        (("dnsPolicy".into(), json!("ClusterFirstWithHostNet")), "dnsPolicy: Unsupported value".into()),
        (dns(json!({"nameservers": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"]})), "dnsConfig.nameservers: Invalid value: 4: must not have more than 3".into()),
        (dns(json!({"searches": vec!["a.example.com"; 33]})), "dnsConfig.searches: Invalid value: 33: must not have more than 32".into()),
        (dns(json!({"searches": (0..11).map(|_| ["a".repeat(63).as_str(); 3].join(".")).collect::<Vec<_>>()})), "dnsConfig.searches: Invalid value: 2111: must not have more than 2048 characters".into()),
        (dns(json!({"options": [{"value": "2"}]})), "dnsConfig.options[0].name: Required value".into()),
        (("imagePullSecrets".into(), json!([{}])), "imagePullSecrets[0].name: Required value".into()),
        (("readinessGates".into(), json!([{"conditionType": "a b"}])), "readinessGates[0].conditionType: Invalid".into()),
        // Placement.
        (("affinity".into(), terms(json!([]))), format!("{node_path}: Required value")),
        (("affinity".into(), terms(json!([{"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["x"]}]}]))), format!("{node_path}[0].matchExpressions[0].values[0]: Invalid")),
        (("affinity".into(), terms(json!([{"matchExpressions": [{"key": "a", "operator": "Near", "values": ["x"]}]}]))), format!("{node_path}[0].matchExpressions[0].operator: Unsupported value")),
        (("affinity".into(), near(json!({"labelSelector": {}}))), format!("{near_path}.topologyKey: Required value: can not be empty")),
        (("affinity".into(), near(json!({"topologyKey": "zone", "matchLabelKeys": ["a"]}))), format!("{near_path}.matchLabelKeys: Forbidden: must not be specified when labelSelector is not set")),
        (("affinity".into(), json!({"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 0, "podAffinityTerm": {"topologyKey": "zone"}}]}})), "affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 0: must be in the range 1-100".into()),
        (("tolerations".into(), json!([{"key": ""}])), "tolerations[0].operator: Invalid".into()),
        (("tolerations".into(), json!([{"key": "a", "operator": "Exists", "value": "b"}])), "tolerations[0].value: Invalid".into()),
        (("tolerations".into(), json!([{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 3}])), "tolerations[0].effect: Invalid".into()),
        (("topologySpreadConstraints".into(), spread(json!({"maxSkew": 0}))), "topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero".into()),
        (("topologySpreadConstraints".into(), spread(json!({"minDomains": 2}))), "topologySpreadConstraints[0].minDomains: Invalid".into()),
        (("topologySpreadConstraints".into(), spread(json!({"whenUnsatisfiable": "Maybe"}))), "topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value".into()),
        (("topologySpreadConstraints".into(), json!([spread(json!({}))[0], spread(json!({"maxSkew": 3}))[0]])), "topologySpreadConstraints[1]: Duplicate value".into()),
        (("preemptionPolicy".into(), json!("Always")), "preemptionPolicy: Unsupported value".into()),
        (("activeDeadlineSeconds".into(), json!(0)), "activeDeadlineSeconds: Invalid value: 0".into()),
        // Ports of the node.
        ((of(main, "ports"), json!([{"containerPort": 1, "hostPort": 9}, {"containerPort": 2, "hostPort": 9}])), "containers[0].ports[1].hostPort: Duplicate value: 9".into()),
        ((of(main, "ports"), json!([{"containerPort": 1, "hostPort": 70_000}])), "containers[0].ports[0].hostPort: Invalid".into()),
        ((of(main, "ports"), json!([{"containerPort": 1, "hostPort": 9, "hostIP": "here"}])), "containers[0].ports[0].hostIP: Invalid".into()),
        ((of(main, "terminationMessagePolicy"), json!("Log")), "containers[0].terminationMessagePolicy: Unsupported value".into()),
        ((of(main, "terminationMessagePath"), json!("end")), "containers[0].terminationMessagePath: Invalid".into()),
    ];
    for ((place, value), start) in cases {
        let texts = bad(&with(pod(), &format!("/spec/{place}"), value));
        assert_eq!(texts.len(), 1, "{place}: {texts:#?}");
        assert!(texts[0].starts_with(&format!("spec.{start}")), "{place}: {texts:#?}\nwanted {start}");
    }
}

#[test]
fn a_pod_that_lives_may_tolerate_more_and_end_sooner() {
    let with_both = |seconds: i64, tolerations: Value| {
        with(with(pod(), "/spec/activeDeadlineSeconds", json!(seconds)), "/spec/tolerations", tolerations)
    };
    let old = with_both(60, json!([{"key": "a", "operator": "Exists", "effect": "NoExecute"}]));
    let more = json!([
        {"key": "b", "operator": "Exists"},
        {"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
    ]);
    assert_eq!(updated(&old, &with_both(30, more)), [""; 0]);
    let texts = updated(&old, &with_both(90, json!([])));
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].starts_with("spec.activeDeadlineSeconds: Invalid value: 90"), "{texts:?}");
    assert!(texts[1].starts_with("spec.tolerations: Forbidden"), "{texts:?}");
}

#[test]
fn a_template_says_nothing_of_ends_and_numbers() {
    let set = super::tests::web();
    let set = with(set, "/spec/template/spec/activeDeadlineSeconds", json!(5));
    let texts = bad(&with(set, "/spec/template/spec/priority", json!(0)));
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts.iter().all(|text| text.contains(": Forbidden: ")), "{texts:?}");
}
