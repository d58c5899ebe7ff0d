//! Generates the messages and services of `proto/`.
//!
//! The JSON names in the descriptors are the single truth for serde: a message's JSON is Kubernetes' JSON because its
//! `.proto` says so. Types whose JSON is not a plain object (times, quantities, int-or-string) get no derive here; their
//! serde stands in `src/json`. From the same descriptors comes the static table behind `src/schema.rs`: what fields there
//! are, for code that must name the ones that are not.

use std::{env, fs, path::PathBuf};

use anyhow::{Context, Result};
use prost::Message;
use prost_reflect::{Cardinality, DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};

/// Messages whose serde is written by hand.
const HAND_WRITTEN: [&str; 3] = ["berth.meta.v1.Time", "berth.meta.v1.Quantity", "berth.meta.v1.IntOrString"];

/// Fields that Kubernetes prints even when they are zero.
const ALWAYS_PRINTED: [&str; 10] = [
    "berth.apps.v1.StatefulSetStatus.replicas",
    "berth.apps.v1.StatefulSetStatus.available_replicas",
    "berth.apps.v1.ControllerRevision.revision",
    "berth.policy.v1.PodDisruptionBudgetStatus.disruptions_allowed",
    "berth.policy.v1.PodDisruptionBudgetStatus.current_healthy",
    "berth.policy.v1.PodDisruptionBudgetStatus.desired_healthy",
    "berth.policy.v1.PodDisruptionBudgetStatus.expected_pods",
    "berth.core.v1.ContainerStatus.ready",
    "berth.core.v1.ContainerStatus.restart_count",
    "berth.core.v1.ContainerStateTerminated.exit_code",
];

/// Packages that hold objects, and so have a Kubernetes JSON form.
const OBJECT_PACKAGES: [&str; 6] =
    ["berth.meta.v1", "berth.core.v1", "berth.apps.v1", "berth.policy.v1", "berth.scheduling.v1", "berth.storage.v1"];

fn main() -> Result<()> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed={}", root.display());

    let files = proto_files(&root)?;
    let descriptors = protox::compile(&files, [&root]).context("compile the files under proto/")?;
    fs::write(out.join("descriptors.binpb"), descriptors.encode_to_vec())?;
    let pool = DescriptorPool::from_file_descriptor_set(descriptors.clone())?;

    let services = env::var_os("CARGO_FEATURE_SERVICES").is_some();
    let mut builder = tonic_prost_build::configure()
        .build_client(services)
        .build_server(services)
        .btree_map(".")
        .compile_well_known_types(false);
    for message in pool.all_messages().filter(has_json) {
        let name = message.full_name();
        builder = builder
            .message_attribute(name, "#[derive(serde::Serialize, serde::Deserialize)]")
            .message_attribute(name, "#[serde(default, rename_all = \"camelCase\")]");
        for field in message.fields() {
            builder = builder.field_attribute(format!("{name}.{}", field.name()), field_serde(&field));
        }
    }
    fs::write(out.join("schema.rs"), schema_table(&pool))?;
    builder.compile_fds(descriptors).context("generate Rust from the descriptors")?;
    Ok(())
}

fn proto_files(dir: &PathBuf) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(proto_files(&path)?);
        } else if path.extension().is_some_and(|e| e == "proto") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn has_json(message: &MessageDescriptor) -> bool {
    OBJECT_PACKAGES.contains(&message.package_name())
        && !message.is_map_entry()
        && !HAND_WRITTEN.contains(&message.full_name())
        && message.oneofs().all(|o| o.is_synthetic())
}

/// Kubernetes' habits: absent and null mean the default, defaults are not printed, bytes are base64.
fn field_serde(field: &FieldDescriptor) -> String {
    let rename = format!("rename = \"{}\"", field.json_name());
    let always = ALWAYS_PRINTED.contains(&field.full_name());
    if field.is_map() && is_bytes_map(field) {
        return format!(
            "#[serde({rename}, with = \"crate::json::bytes_map\", skip_serializing_if = \"crate::json::is_default\")]"
        );
    }
    let optional = field.cardinality() == Cardinality::Optional && field.supports_presence();
    match (optional, always) {
        (true, _) => format!("#[serde({rename}, skip_serializing_if = \"Option::is_none\")]"),
        (false, true) => format!("#[serde({rename}, deserialize_with = \"crate::json::null_is_default\")]"),
        (false, false) => format!(
            "#[serde({rename}, deserialize_with = \"crate::json::null_is_default\", skip_serializing_if = \"crate::json::is_default\")]"
        ),
    }
}

fn is_bytes_map(field: &FieldDescriptor) -> bool {
    match field.kind() {
        Kind::Message(entry) => matches!(entry.map_entry_value_field().kind(), Kind::Bytes),
        _ => false,
    }
}

/// The objects' messages as statics of `src/schema.rs`'s types.
fn schema_table(pool: &DescriptorPool) -> String {
    let in_objects = |m: &MessageDescriptor| OBJECT_PACKAGES.contains(&m.package_name()) && !m.is_map_entry();
    let messages = pool.all_messages().filter(in_objects).filter(|m| !HAND_WRITTEN.contains(&m.full_name()));
    let mut out = String::new();
    for message in messages {
        let fields: Vec<_> = message.fields().map(|f| schema_field(&f)).collect();
        out.push_str(&format!(
            "#[doc = \"The fields of {name}.\"]\npub static {constant}: Message = Message {{ name: \"{name}\", fields: &[{fields}] }};\n",
            name = message.name(),
            constant = constant_name(message.name()),
            fields = fields.join(", "),
        ));
    }
    out
}

fn schema_field(field: &FieldDescriptor) -> String {
    let (form, kind) = match field.kind() {
        Kind::Message(entry) if field.is_map() => ("Map", entry.map_entry_value_field().kind()),
        kind if field.is_list() => ("List", kind),
        kind => ("One", kind),
    };
    format!("Field {{ name: \"{}\", form: Form::{form}, shape: {} }}", field.json_name(), schema_shape(&kind))
}

fn schema_shape(kind: &Kind) -> String {
    match kind {
        Kind::Bool => "Shape::Bool".to_owned(),
        Kind::Int32 => "Shape::Int32".to_owned(),
        Kind::Int64 => "Shape::Int64".to_owned(),
        Kind::String => "Shape::Text".to_owned(),
        Kind::Bytes => "Shape::Bytes".to_owned(),
        Kind::Message(message) if HAND_WRITTEN.contains(&message.full_name()) => format!("Shape::{}", message.name()),
        Kind::Message(message) => format!("Shape::Message(&{})", constant_name(message.name())),
        other => panic!("objects have no fields of type {other:?}: teach schema.rs and src/json what they are in JSON"),
    }
}

/// StatefulSetSpec -> STATEFUL_SET_SPEC
fn constant_name(message: &str) -> String {
    let mut out = String::new();
    for (at, char) in message.char_indices() {
        if at > 0 && char.is_uppercase() {
            out.push('_');
        }
        out.push(char.to_ascii_uppercase());
    }
    out
}
