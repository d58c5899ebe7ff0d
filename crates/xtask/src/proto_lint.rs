//! The proto lint: what every contract in proto/ keeps, so that clients in any language find the same habits.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use prost_reflect::{DescriptorPool, EnumDescriptor, FileDescriptor, MessageDescriptor, ServiceDescriptor};

/// Every contract of our own, described from the bytes that services reflect.
pub(crate) fn pool() -> Result<DescriptorPool> {
    DescriptorPool::decode(pb::DESCRIPTORS).context("decode the descriptors")
}

/// Whether the file is ours to shape; the others follow specifications of their own.
pub(crate) fn ours(package: &str) -> bool {
    package.starts_with("berth.")
}

/// Everything that breaks a rule.
pub fn check() -> Result<Vec<String>> {
    let pool = pool()?;
    let mut findings = Vec::new();
    for file in pool.files().filter(|file| ours(file.package_name())) {
        findings.extend(check_package(&file));
        findings.extend(check_comments(&file));
        file.enums().for_each(|it| findings.extend(check_enum(&it)));
    }
    let mut users = BTreeMap::new();
    for service in pool.services().filter(|service| ours(service.package_name())) {
        findings.extend(check_service(&service, &mut users));
    }
    for message in pool.all_messages().filter(|message| ours(message.package_name())) {
        findings.extend(check_message(&message));
    }
    Ok(findings)
}

fn check_package(file: &FileDescriptor) -> Vec<String> {
    let folder = file.name().rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut findings = Vec::new();
    if folder.replace('/', ".") != file.package_name() {
        findings.push(format!("{}: package {} does not match the folder", file.name(), file.package_name()));
    }
    let version = file.package_name().rsplit('.').next().unwrap_or_default();
    if !version.strip_prefix('v').is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit())) {
        findings.push(format!("{}: package {} does not end with a version", file.name(), file.package_name()));
    }
    findings
}

/// Messages, fields, services, calls and values say what they mean. (Paths of the source info: 4 messages, 5 enums,
/// 6 services; within a message 2 fields, 3 messages, 4 enums; within an enum or a service 2.)
fn check_comments(file: &FileDescriptor) -> Vec<String> {
    let proto = file.file_descriptor_proto();
    let Some(info) = &proto.source_code_info else {
        return vec![format!("{}: the descriptors hold no comments", file.name())];
    };
    let documented = |path: &[i32]| matches!(path, [4..=6, _] | [4, _, 2, _] | [5, _, 2, _] | [6, _, 2, _]);
    let missing = info
        .location
        .iter()
        .filter(|location| documented(&location.path) && location.leading_comments().trim().is_empty());
    missing
        .map(|location| {
            let line = location.span.first().map_or(0, |line| line + 1);
            format!("{}:{line}: has no comment", file.name())
        })
        .collect()
}

fn check_enum(it: &EnumDescriptor) -> Vec<String> {
    let prefix = screaming(it.name());
    let mut findings = Vec::new();
    for value in it.values() {
        if !value.name().starts_with(&prefix) {
            findings.push(format!("{}.{}: does not start with {prefix}", it.full_name(), value.name()));
        }
        if value.number() == 0 && !value.name().ends_with("_UNSPECIFIED") {
            findings.push(format!(
                "{}.{}: the zero value does not end with _UNSPECIFIED",
                it.full_name(),
                value.name()
            ));
        }
    }
    findings
}

fn screaming(camel: &str) -> String {
    let mut out = String::new();
    for c in camel.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
    }
    out + "_"
}

fn check_service(service: &ServiceDescriptor, users: &mut BTreeMap<String, String>) -> Vec<String> {
    let mut findings = Vec::new();
    if !service.name().ends_with("Service") {
        findings.push(format!("{}: does not end with Service", service.full_name()));
    }
    for method in service.methods() {
        let call = method.full_name().to_owned();
        for (message, end) in [(method.input(), "Request"), (method.output(), "Response")] {
            if message.name() != format!("{}{end}", method.name()) {
                findings.push(format!("{call}: uses {} instead of {}{end}", message.name(), method.name()));
            }
            if let Some(other) = users.insert(message.full_name().to_owned(), call.clone()) {
                findings.push(format!("{call}: shares {} with {other}", message.name()));
            }
        }
    }
    findings
}

fn check_message(message: &MessageDescriptor) -> Vec<String> {
    let bad = message
        .fields()
        .filter(|field| field.name().chars().any(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')));
    bad.map(|field| format!("{}: is not lower_snake_case", field.full_name())).collect()
}
