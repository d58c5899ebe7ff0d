//! Volumes of pods in folders of this machine, without drivers.

use std::{fs, os::unix::fs::PermissionsExt};

use pb::objects::{
    ConfigMap, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, KeyToPath, Time, VolumeAttachment,
    VolumeAttachmentStatus, VolumeError as AttachError, VolumeMount,
};

use super::*;

fn bundle(volumes: Vec<Volume>) -> PodBundle {
    let meta = |name: &str| ObjectMeta { name: name.into(), uid: name.into(), ..Default::default() };
    let data = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())].into();
    PodBundle {
        pod: Some(Pod {
            metadata: Some(meta("pod")),
            spec: Some(PodSpec { volumes, ..Default::default() }),
            ..Default::default()
        }),
        config_maps: vec![ConfigMap { metadata: Some(meta("conf")), data, ..Default::default() }],
        ..Default::default()
    }
}

fn config(items: Vec<KeyToPath>) -> Volume {
    let map = ConfigMapVolumeSource { name: "conf".into(), items, ..Default::default() };
    Volume { name: "conf".into(), config_map: Some(map), ..Default::default() }
}

fn manager(dir: &Path) -> VolumeManager {
    VolumeManager::new(dir, Arc::new(Registry::new(dir)), Duration::from_secs(1)).unwrap()
}

#[tokio::test]
async fn files_and_empty_folders_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let manager = manager(dir.path());
    let item = KeyToPath { key: "b".into(), path: "sub/two".into(), mode: Some(0o400) };
    let scratch =
        Volume { name: "scratch".into(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Default::default() };
    let bundle = bundle(vec![config(vec![item]), scratch]);
    manager.mount(&bundle, nowhere()).await.unwrap();
    manager.mount(&bundle, nowhere()).await.unwrap();
    let paths = manager.paths(bundle.pod.as_ref().unwrap());
    let file = paths["conf"].0.join("sub/two");
    assert_eq!(fs::read_to_string(&file).unwrap(), "2");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o400);
    assert!(!paths["conf"].0.join("a").exists());
    fs::write(paths["scratch"].0.join("x"), "y").unwrap();
    let mut pod = bundle.pod.clone().unwrap();
    let mounts = vec![VolumeMount { name: "scratch".into(), ..Default::default() }];
    let main = Container { name: "main".into(), volume_mounts: mounts, ..Default::default() };
    pod.spec.as_mut().unwrap().containers = vec![main];
    manager.verify(&pod, "main").await.unwrap();
    fs::rename(&paths["scratch"].0, dir.path().join("away")).unwrap();
    assert_eq!(manager.verify(&pod, "main").await.unwrap_err().reason(), LOST);

    manager.unmount("pod").await.unwrap();
    assert!(manager.is_absent("pod"));
    manager.unmount("pod").await.unwrap();
}

#[tokio::test]
async fn refuses_paths_that_leave_the_volume_and_names_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let manager = manager(dir.path());
    for (key, path, says) in
        [("a", "../x", "must be relative"), ("a", "/x", "must be relative"), ("c", "c", "key \"c\"")]
    {
        let item = KeyToPath { key: key.into(), path: path.into(), mode: None };
        let error = manager.mount(&bundle(vec![config(vec![item])]), nowhere()).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let mut without = bundle(vec![config(vec![])]);
    without.config_maps.clear();
    let error = manager.mount(&without, nowhere()).await.unwrap_err().to_string();
    assert!(error.contains("configMap \"conf\" does not exist"), "{error}");
}

#[test]
fn a_volume_that_must_be_attached_waits_until_it_is() {
    let volume = Volume { name: "www".into(), ..Default::default() };
    let status = |attached| VolumeAttachmentStatus {
        attached,
        attachment_metadata: [("device".to_owned(), "7".to_owned())].into(),
        attach_error: (!attached).then(|| AttachError { message: "node-2 has it".into(), ..Default::default() }),
        ..Default::default()
    };
    let attachment = |attached, ends: bool| VolumeAttachment {
        metadata: Some(ObjectMeta { deletion_timestamp: ends.then(Time::default), ..Default::default() }),
        status: Some(status(attached)),
        ..Default::default()
    };
    let wait = |required, attachment| {
        let volume = PersistentVolume::default();
        ClaimVolume { volume: Some(volume), attach_required: required, attachment, ..Default::default() }
    };
    let ask = |bound: &ClaimVolume| {
        let context = attached(&volume, "www-web-0", Some(bound)).map(|(_, context)| context.clone());
        context.map_err(|error| (error.reason(), error.to_string()))
    };
    assert_eq!(ask(&wait(false, None)).unwrap().len(), 0);
    assert_eq!(ask(&wait(true, Some(attachment(true, false)))).unwrap()["device"], "7");
    for (bound, says) in [
        (wait(true, None), "yet"),
        (wait(true, Some(attachment(false, false))), "node-2 has it"),
        (wait(true, Some(attachment(true, true))), "being detached"),
    ] {
        let (reason, message) = ask(&bound).unwrap_err();
        assert!(reason == "VolumeNotAttached" && message.contains(says), "{reason}: {message}");
    }
    assert_eq!(attached(&volume, "www-web-0", None).unwrap_err().reason(), "FailedMount");
}

fn nowhere() -> Place<'static> {
    static NOTHING: BTreeMap<String, model::quantity::Quantity> = BTreeMap::new();
    Place { node_name: "n", host_ip: "", pod_ip: "", allocatable: &NOTHING }
}
