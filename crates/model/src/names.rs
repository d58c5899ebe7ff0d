//! The grammar of names, labels and annotations, as Kubernetes has it (RFC 1123, RFC 1035, IANA service names).
//!
//! Each check answers with the rule that a text breaks, in words that fit behind "Invalid value".

/// The rule that a text breaks.
pub type Broken = &'static str;

const LABEL: Broken = "must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (such as my-name or 123-abc)";
const LABEL_1035: Broken = "must consist of lower case alphanumeric characters or '-', start with a letter, and end with an alphanumeric character (such as my-name or abc-123)";
const SUBDOMAIN: Broken = "must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (such as example.com)";
const QUALIFIED: Broken = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character, with an optional DNS prefix and '/' (such as MyName, my.name or example.com/my-name)";
const VALUE: Broken = "must be empty or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (such as MyValue or 12345)";
const PORT_NAME: Broken = "must consist of at most 15 lower case alphanumeric characters or '-', with at least one letter, no '-' at either end and no two in a row (such as http or web-1)";
const CONFIG_KEY: Broken = "must consist of alphanumeric characters, '-', '_' or '.', and must not be '.', '..' or start with '..' (such as key.name or KEY_NAME)";
const ENV_NAME: Broken = "must consist of printable ASCII characters other than '='";

/// Longest DNS label.
pub const LONGEST_LABEL: usize = 63;
/// Longest DNS name.
pub const LONGEST_SUBDOMAIN: usize = 253;

fn hold(rule: bool, broken: Broken) -> Result<(), Broken> {
    if rule { Ok(()) } else { Err(broken) }
}

fn framed(text: &str, inner: impl Fn(u8) -> bool, end: impl Fn(u8) -> bool) -> bool {
    match text.as_bytes() {
        [] => false,
        bytes @ [first, ..] => end(*first) && end(bytes[bytes.len() - 1]) && bytes.iter().all(|b| inner(*b)),
    }
}

fn lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// A DNS label (RFC 1123).
pub fn dns_label(text: &str) -> Result<(), Broken> {
    hold(text.len() <= LONGEST_LABEL, "must be no more than 63 characters")?;
    hold(!text.contains('.'), "must not contain dots")?;
    hold(framed(text, |b| lower(b) || b == b'-', lower), LABEL)
}

/// A DNS label that starts with a letter (RFC 1035).
pub fn dns_label_1035(text: &str) -> Result<(), Broken> {
    dns_label(text)?;
    hold(text.starts_with(|c: char| c.is_ascii_lowercase()), LABEL_1035)
}

/// A DNS name.
pub fn dns_subdomain(text: &str) -> Result<(), Broken> {
    hold(text.len() <= LONGEST_SUBDOMAIN, "must be no more than 253 characters")?;
    hold(text.split('.').all(|part| framed(part, |b| lower(b) || b == b'-', lower)), SUBDOMAIN)
}

/// The key of a label, the type of a finalizer, the name of a driver: `[prefix/]name`.
pub fn label_key(text: &str) -> Result<(), Broken> {
    let name = match text.split_once('/') {
        Some((prefix, name)) => {
            hold(dns_subdomain(prefix).is_ok(), "the part before '/' must be a DNS name (such as example.com)")?;
            name
        }
        None => text,
    };
    hold(!name.is_empty(), "the name must not be empty")?;
    hold(name.len() <= LONGEST_LABEL, "the name must be no more than 63 characters")?;
    hold(framed(name, |b| b.is_ascii_alphanumeric() || b"-_.".contains(&b), |b| b.is_ascii_alphanumeric()), QUALIFIED)
}

/// The value of a label.
pub fn label_value(text: &str) -> Result<(), Broken> {
    hold(text.len() <= LONGEST_LABEL, "must be no more than 63 bytes")?;
    let good = framed(text, |b| b.is_ascii_alphanumeric() || b"-_.".contains(&b), |b| b.is_ascii_alphanumeric());
    hold(text.is_empty() || good, VALUE)
}

/// The name of a port.
pub fn port_name(text: &str) -> Result<(), Broken> {
    let good = text.len() <= 15
        && framed(text, |b| lower(b) || b == b'-', lower)
        && text.bytes().any(|b| b.is_ascii_lowercase())
        && !text.contains("--");
    hold(good, PORT_NAME)
}

/// A key of a ConfigMap or Secret.
pub fn config_key(text: &str) -> Result<(), Broken> {
    hold(text.len() <= LONGEST_SUBDOMAIN, "must be no more than 253 characters")?;
    let good = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    hold(good && text != "." && !text.starts_with(".."), CONFIG_KEY)
}

/// The name of an environment variable.
pub fn env_name(text: &str) -> Result<(), Broken> {
    hold(!text.is_empty() && text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'='), ENV_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammar() {
        for good in ["a", "9web", "a-b", &"a".repeat(63)] {
            assert_eq!(dns_label(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "ünï", &"a".repeat(64)] {
            assert!(dns_label(bad).is_err(), "{bad}");
        }
        for good in ["app", "example.com/app", "app.kubernetes.io/Name_1"] {
            assert_eq!(label_key(good), Ok(()), "{good}");
        }
        for bad in ["", "/", "a/", "/a", "a/b/c", "a b", "_a", "A.com/x"] {
            assert!(label_key(bad).is_err(), "{bad}");
        }
        assert!(port_name("http").is_ok() && port_name("80").is_err() && port_name("a--b").is_err());
        assert!(config_key("a.b").is_ok() && config_key("..").is_err() && config_key("a/b").is_err());
    }
}
