//! How objects are shown: as a table, as JSON or YAML, or by name.

mod columns;
mod diff;
mod pod;
pub mod table;

use std::{io::Write, process::ExitCode};

use anyhow::{Context, Result};
use clap::ValueEnum;
use jiff::Timestamp;
use pb::{Kind, api::v1::Object as AnyObject};
use serde_json::{Value, json};

pub use columns::{header, row};
pub use diff::unified;
pub use pod::reason as pod_reason;
use table::Table;

/// A form of output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table
    #[default]
    Table,
    /// A table with more columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
    /// KIND/NAME, one a line
    Name,
}

/// `statefulset.apps/web`: how an object is called in answers.
pub fn called(kind: Kind, name: &str) -> String {
    format!("{}/{name}", typed(kind))
}

/// `statefulset.apps`: a kind with its group.
pub fn typed(kind: Kind) -> String {
    let lower = kind.name().to_ascii_lowercase();
    match kind.api_version().rsplit_once('/') {
        Some((group, _)) => format!("{lower}.{group}"),
        None => lower,
    }
}

/// An object as JSON, with its kind.
pub fn to_json(object: &AnyObject) -> Result<Value> {
    object.to_json().context("show an object as JSON")
}

/// Writes a value in a form for programs.
pub fn write_value(out: &mut impl Write, value: &Value, format: Format) -> Result<()> {
    match format {
        Format::Yaml => write!(out, "{}", yaml(value)?)?,
        _ => {
            serde_json::to_writer_pretty(&mut *out, value)?;
            writeln!(out)?;
        }
    }
    Ok(())
}

/// A value as YAML; what is written reads back as the same.
pub fn yaml(value: &Value) -> Result<String> {
    let options = serde_saphyr::ser_options! { compact_list_indent: true };
    let mut text = serde_saphyr::to_string_with_options(value, options).context("show an object as YAML")?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// A `kind: List` of objects.
pub fn list(objects: &[AnyObject]) -> Result<Value> {
    let items = objects.iter().map(to_json).collect::<Result<Vec<_>>>()?;
    Ok(json!({"apiVersion": "v1", "kind": "List", "items": items, "metadata": {"resourceVersion": ""}}))
}

/// What a table of objects shows beside the kind's own columns.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shown {
    /// More columns.
    pub wide: bool,
    /// A column for the namespace.
    pub namespace: bool,
    /// KIND/NAME instead of the name.
    pub kind: bool,
    /// A column for the labels.
    pub labels: bool,
}

impl Shown {
    /// The header for a kind.
    pub fn header(self, kind: Kind) -> Vec<String> {
        let mut cells: Vec<String> = Vec::new();
        if self.namespace && kind.namespaced() {
            cells.push("NAMESPACE".to_owned());
        }
        cells.extend(header(kind, self.wide).into_iter().map(str::to_owned));
        if self.labels {
            cells.push("LABELS".to_owned());
        }
        cells
    }

    /// The row for an object.
    pub fn row(self, object: &AnyObject, now: Timestamp) -> Vec<String> {
        let Some(kind) = object.kind() else { return Vec::new() };
        let mut cells = row(object, self.wide, now);
        if self.kind && kind != Kind::Event {
            cells[0] = called(kind, &cells[0]);
        }
        if self.namespace && kind.namespaced() {
            cells.insert(0, object.meta().namespace.clone());
        }
        if self.labels {
            let labels = object.meta().labels.iter().map(|(key, value)| format!("{key}={value}"));
            cells.push(columns::or_none(labels.collect::<Vec<_>>().join(",")));
        }
        cells
    }
}

/// The table of all kinds.
pub fn kinds() -> ExitCode {
    let mut table = Table::new(["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"]);
    for kind in Kind::ALL {
        table.push([kind.plural(), kind.short(), kind.api_version(), &kind.namespaced().to_string(), kind.name()]);
    }
    print!("{table}");
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_reads_back_as_the_same() {
        let value = json!({
            "a": "yes", "b": "0644", "c": "1.0", "d": "null", "e": "", "f": "a: b # c", "g": "x\ny\n", "h": [{"i": [1, "1", true]}],
            "j": {}, "k": [], "l": "- x", "m": "~", "n": "2026-01-01T00:00:00Z", "o": "1e3", "p": " lead", "q": "tab\there", "r": "0x10",
        });
        let text = yaml(&value).unwrap();
        let options = serde_saphyr::options! { legacy_octal_numbers: true };
        let back: Value = serde_saphyr::from_str_with_options(&text, options).unwrap();
        assert_eq!(back, value, "{text}");
    }

    #[test]
    fn names() {
        assert_eq!(called(Kind::StatefulSet, "web"), "statefulset.apps/web");
        assert_eq!(called(Kind::PersistentVolumeClaim, "www-web-0"), "persistentvolumeclaim/www-web-0");
        assert_eq!(called(Kind::StorageClass, "local"), "storageclass.storage.k8s.io/local");
    }
}
