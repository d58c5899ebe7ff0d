//! What the files of a volume are that the agent fills by itself: ConfigMaps, Secrets, fields of the pod, and several of
//! these in one folder.
//!
//! Pure: a pod with what it needs, and one of its volumes, give the files. What is missing is an error that says what to
//! create, unless the volume says that it may be missing.

use std::{
    collections::BTreeMap,
    path::{Component, Path},
};

use pb::{
    agent::v1::PodBundle,
    objects::{DownwardApiVolumeFile, KeyToPath, ObjectMeta, Pod, Volume},
};

use super::VolumeError;
use crate::fields::{self, Place};

/// Mode of files unless the volume says otherwise.
const FILE_MODE: i32 = 0o644;

/// Files, by their relative paths.
pub type Files = BTreeMap<String, File>;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// What it holds.
    pub bytes: Vec<u8>,
    /// Permissions.
    pub mode: u32,
}

/// Whether a volume's files are the agent's to write.
pub fn is_content(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// The files of a volume for which [`is_content`] holds.
pub fn files(bundle: &PodBundle, volume: &Volume, place: Place<'_>) -> Result<Files, VolumeError> {
    let mut content = Content { bundle, volume, place, mode: FILE_MODE, files: Files::new() };
    if let Some(map) = &volume.config_map {
        content.mode = map.default_mode.unwrap_or(FILE_MODE);
        content.config_map(&map.name, &map.items, map.optional)?;
    }
    if let Some(secret) = &volume.secret {
        content.mode = secret.default_mode.unwrap_or(FILE_MODE);
        content.secret(&secret.secret_name, &secret.items, secret.optional)?;
    }
    if let Some(downward) = &volume.downward_api {
        content.mode = downward.default_mode.unwrap_or(FILE_MODE);
        content.fields(&downward.items)?;
    }
    if let Some(projected) = &volume.projected {
        content.mode = projected.default_mode.unwrap_or(FILE_MODE);
        // Of two sources with a file of the same path, the later one wins, as in Kubernetes.
        for source in &projected.sources {
            if let Some(map) = &source.config_map {
                content.config_map(&map.name, &map.items, map.optional)?;
            }
            if let Some(secret) = &source.secret {
                content.secret(&secret.name, &secret.items, secret.optional)?;
            }
            if let Some(downward) = &source.downward_api {
                content.fields(&downward.items)?;
            }
        }
    }
    Ok(content.files)
}

struct Content<'a> {
    bundle: &'a PodBundle,
    volume: &'a Volume,
    place: Place<'a>,
    mode: i32,
    files: Files,
}

impl Content<'_> {
    fn config_map(&mut self, name: &str, items: &[KeyToPath], optional: Option<bool>) -> Result<(), VolumeError> {
        let found = self.bundle.config_maps.iter().find(|found| is_named(found.metadata.as_ref(), name));
        if found.is_none() && optional != Some(true) {
            return Err(self.missing(format!("configMap {name:?} does not exist")));
        }
        let text = found.iter().flat_map(|found| &found.data).map(|(key, text)| (key.as_str(), text.as_bytes()));
        let bytes = found.iter().flat_map(|found| &found.binary_data).map(|(key, b)| (key.as_str(), b.as_slice()));
        self.keys(&text.chain(bytes).collect(), items, optional)
    }

    fn secret(&mut self, name: &str, items: &[KeyToPath], optional: Option<bool>) -> Result<(), VolumeError> {
        let found = self.bundle.secrets.iter().find(|found| is_named(found.metadata.as_ref(), name));
        if found.is_none() && optional != Some(true) {
            return Err(self.missing(format!("secret {name:?} does not exist")));
        }
        let data = found.iter().flat_map(|found| &found.data);
        self.keys(&data.map(|(key, bytes)| (key.as_str(), bytes.as_slice())).collect(), items, optional)
    }

    /// Keys as files: all, or those that `items` names, at their paths.
    fn keys(
        &mut self,
        keys: &BTreeMap<&str, &[u8]>,
        items: &[KeyToPath],
        optional: Option<bool>,
    ) -> Result<(), VolumeError> {
        if items.is_empty() {
            for (key, bytes) in keys {
                self.put(key, bytes.to_vec(), None)?;
            }
        }
        for item in items {
            match keys.get(item.key.as_str()) {
                Some(bytes) => self.put(&item.path, bytes.to_vec(), item.mode)?,
                None if optional == Some(true) => {}
                None => return Err(self.missing(format!("key {:?} does not exist", item.key))),
            }
        }
        Ok(())
    }

    fn fields(&mut self, items: &[DownwardApiVolumeFile]) -> Result<(), VolumeError> {
        let none = Pod::default();
        let pod = self.bundle.pod.as_ref().unwrap_or(&none);
        for item in items {
            let value = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => field_of(pod, &field.field_path, self.place),
                (None, Some(selector)) => fields::of_container(pod, None, selector, self.place),
                (None, None) => Err("names neither fieldRef nor resourceFieldRef".to_owned()),
            };
            let text = value.map_err(|why| self.problem(format!("file {:?}: {why}", item.path)))?;
            self.put(&item.path, text.into_bytes(), item.mode)?;
        }
        Ok(())
    }

    fn put(&mut self, path: &str, bytes: Vec<u8>, mode: Option<i32>) -> Result<(), VolumeError> {
        let parts = Path::new(path).components();
        let first = path.split('/').next().unwrap_or_default();
        if path.is_empty() || first.starts_with("..") || !parts.clone().all(|part| matches!(part, Component::Normal(_)))
        {
            return Err(VolumeError::BadPath { volume: self.volume.name.clone(), path: path.to_owned() });
        }
        let mode = u32::try_from(mode.unwrap_or(self.mode)).unwrap_or(0o644) & 0o777;
        self.files.insert(path.to_owned(), File { bytes, mode });
        Ok(())
    }

    fn missing(&self, problem: String) -> VolumeError {
        self.problem(format!("{problem}; create it, and the pod starts"))
    }

    fn problem(&self, problem: String) -> VolumeError {
        VolumeError::Missing { volume: self.volume.name.clone(), problem }
    }
}

/// As a variable would have it; labels and annotations as a whole too, one `key="value"` on a line.
fn field_of(pod: &Pod, path: &str, place: Place<'_>) -> Result<String, String> {
    let meta = pod.metadata.clone().unwrap_or_default();
    let lines = |map: BTreeMap<String, String>| {
        let lines: Vec<String> = map.iter().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
        lines.join("\n")
    };
    match path {
        "metadata.labels" => Ok(lines(meta.labels)),
        "metadata.annotations" => Ok(lines(meta.annotations)),
        path => fields::of_pod(pod, path, place),
    }
}

/// In double quotes, with what would end them or the line escaped.
fn quoted(value: &str) -> String {
    let mut out = String::from("\"");
    for char in value.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            char if char.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(char))),
            char => out.push(char),
        }
    }
    out.push('"');
    out
}

fn is_named(meta: Option<&ObjectMeta>, name: &str) -> bool {
    meta.is_some_and(|meta| meta.name == name)
}

#[cfg(test)]
mod tests {
    use pb::objects::{
        ConfigMap, ConfigMapVolumeSource, DownwardApiProjection, KeyProjection, ObjectFieldSelector,
        ProjectedVolumeSource, Secret, VolumeProjection,
    };

    use super::*;

    fn bundle() -> PodBundle {
        let meta = |name: &str| ObjectMeta { name: name.into(), ..Default::default() };
        let labels = [("app".to_owned(), "web".to_owned()), ("note".to_owned(), "a \"b\"\nc".to_owned())].into();
        PodBundle {
            pod: Some(Pod { metadata: Some(ObjectMeta { labels, ..meta("web-0") }), ..Default::default() }),
            config_maps: vec![ConfigMap {
                metadata: Some(meta("conf")),
                data: [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())].into(),
                ..Default::default()
            }],
            secrets: vec![Secret {
                metadata: Some(meta("pass")),
                data: [("word".to_owned(), b"xyz".to_vec())].into(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn made(volume: &Volume) -> Result<Vec<(String, String, u32)>, String> {
        let allocatable = BTreeMap::new();
        let place = Place { node_name: "n", host_ip: "", pod_ip: "", allocatable: &allocatable };
        let files = files(&bundle(), volume, place).map_err(|error| error.to_string())?;
        Ok(files.into_iter().map(|(path, f)| (path, String::from_utf8(f.bytes).unwrap(), f.mode)).collect())
    }

    fn item(key: &str, path: &str, mode: Option<i32>) -> KeyToPath {
        KeyToPath { key: key.into(), path: path.into(), mode }
    }

    fn file(path: &str, field: &str) -> DownwardApiVolumeFile {
        let field_ref = Some(ObjectFieldSelector { field_path: field.into(), ..Default::default() });
        DownwardApiVolumeFile { path: path.into(), field_ref, ..Default::default() }
    }

    fn own(path: &str, text: &str, mode: u32) -> (String, String, u32) {
        (path.to_owned(), text.to_owned(), mode)
    }

    #[test]
    fn several_sources_come_into_one_folder_and_the_later_one_wins() {
        let named = |name: &str, items: Vec<KeyToPath>| KeyProjection { name: name.into(), items, optional: None };
        let config_map = Some(named("conf", vec![]));
        let secret = Some(named("pass", vec![item("word", "deep/word", Some(0o400)), item("word", "b", None)]));
        let downward_api = Some(DownwardApiProjection {
            items: vec![file("name", "metadata.name"), file("labels", "metadata.labels")],
        });
        let sources = vec![
            VolumeProjection { config_map, ..Default::default() },
            VolumeProjection { secret, ..Default::default() },
            VolumeProjection { downward_api, ..Default::default() },
        ];
        let projected = Some(ProjectedVolumeSource { sources, default_mode: Some(0o440) });
        assert_eq!(
            made(&Volume { projected, ..Default::default() }).unwrap(),
            [
                own("a", "1", 0o440),
                own("b", "xyz", 0o440),
                own("deep/word", "xyz", 0o400),
                own("labels", "app=\"web\"\nnote=\"a \\\"b\\\"\\nc\"", 0o440),
                own("name", "web-0", 0o440),
            ]
        );
    }

    #[test]
    fn what_is_missing_is_named_and_no_path_leads_out() {
        let volume = |name: &str, items: Vec<KeyToPath>, optional| Volume {
            name: "v".into(),
            config_map: Some(ConfigMapVolumeSource { name: name.into(), items, optional, ..Default::default() }),
            ..Default::default()
        };
        for (volume, says) in [
            (volume("nowhere", vec![], None), "configMap \"nowhere\" does not exist; create it"),
            (volume("conf", vec![item("c", "c", None)], None), "key \"c\" does not exist"),
            (volume("conf", vec![item("a", "../a", None)], None), "path \"../a\""),
            (volume("conf", vec![item("a", "/a", None)], None), "path \"/a\""),
            (volume("conf", vec![item("a", "..data", None)], None), "path \"..data\""),
        ] {
            let error = made(&volume).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert_eq!(made(&volume("nowhere", vec![], Some(true))), Ok(vec![]));
        assert_eq!(made(&volume("conf", vec![item("c", "c", None)], Some(true))), Ok(vec![]));
    }
}
