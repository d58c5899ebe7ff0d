//! Manifests: YAML or JSON, several documents in a file, several files in a folder.
//!
//! YAML is read as kubectl reads it: `0644` is octal, `yes` is true, a key that stands twice is an error. What comes
//! out is JSON; what it means is for the API service to judge.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The documents of one file.
#[derive(Debug)]
pub struct Source {
    /// What to call the file in messages.
    pub name: String,
    /// Its documents; lists are taken apart.
    pub documents: Vec<Value>,
}

/// Reads files, folders (their .yaml, .yml and .json files) and `-` for standard input.
pub fn read(paths: &[PathBuf], recursive: bool) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("read standard input")?;
            sources.push(source("standard input", &text)?);
            continue;
        }
        for file in files(path, recursive)? {
            let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            sources.push(source(&file.display().to_string(), &text)?);
        }
    }
    if sources.iter().all(|source| source.documents.is_empty()) {
        bail!("no objects in {}", sources.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", "));
    }
    Ok(sources)
}

fn files(path: &Path, recursive: bool) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let mut entries: Vec<_> =
        entries.with_context(|| format!("read {}", path.display()))?.into_iter().map(|entry| entry.path()).collect();
    entries.sort();
    let mut found = Vec::new();
    for entry in entries {
        let manifest = entry.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e == *known));
        if entry.is_dir() && recursive {
            found.extend(files(&entry, recursive)?);
        } else if entry.is_file() && manifest {
            found.push(entry);
        }
    }
    Ok(found)
}

fn source(name: &str, text: &str) -> Result<Source> {
    let documents = parse(text).map_err(|why| anyhow::anyhow!("{name}: {why}"))?;
    Ok(Source { name: name.to_owned(), documents })
}

/// Reads the documents of a text. JSON is YAML too.
fn parse(text: &str) -> Result<Vec<Value>, String> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        // Advice for programmers and a second "error:" are no help to the user.
        let why = error.to_string().replace(", set DuplicateKeyPolicy in Options if acceptable", "");
        why.strip_prefix("error: ").unwrap_or(&why).to_owned()
    })?;
    Ok(documents.into_iter().flat_map(taken_apart).collect())
}

/// The items of a `kind: List`, or the document itself.
fn taken_apart(document: Value) -> Vec<Value> {
    match document {
        Value::Null => Vec::new(),
        Value::Object(mut fields) if fields.get("kind").and_then(Value::as_str) == Some("List") => {
            match fields.remove("items") {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            }
        }
        other => vec![other],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What the documentation shows must work as it is.
    #[test]
    fn the_examples_are_valid() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples");
        let sources = read(&[folder], false).unwrap();
        assert!(sources.len() >= 2);
        for source in sources {
            for document in source.documents {
                let read = model::decode::manifest(&document, model::decode::Mode::Strict);
                assert!(read.is_ok(), "{}: {:#?}", source.name, read.err());
            }
        }
    }

    #[test]
    fn several_documents_and_lists() {
        let text = "# first\nkind: A\n---\n---\nkind: List\nitems:\n- kind: B\n- kind: C\n---\n# nothing\n";
        assert_eq!(parse(text).unwrap(), [json!({"kind": "A"}), json!({"kind": "B"}), json!({"kind": "C"})]);
        assert_eq!(parse("{\"kind\": \"A\", \"n\": 1}").unwrap(), [json!({"kind": "A", "n": 1})]);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn scalars_are_those_of_kubectl() {
        let text = "mode: 0644\nquoted: \"0644\"\nyes: yes\nnone: ~\nversion: 1.10\nsize: 1Gi\nport: 80\nbig: 3000000000\ntime: 2026-01-01T00:00:00Z\nmulti: |\n  a\n  b\n";
        let expected = json!({
            "mode": 420, "quoted": "0644", "yes": true, "none": null, "version": 1.1, "size": "1Gi", "port": 80,
            "big": 3_000_000_000_i64, "time": "2026-01-01T00:00:00Z", "multi": "a\nb\n",
        });
        assert_eq!(parse(text).unwrap(), [expected]);
    }

    #[test]
    fn anchors_and_merges() {
        let text = "a: &x {app: web}\nb: *x\nc:\n  <<: *x\n  tier: db\n";
        assert_eq!(parse(text).unwrap()[0]["c"], json!({"app": "web", "tier": "db"}));
    }

    #[test]
    fn mistakes_have_a_place() {
        let twice = parse("kind: A\nspec:\n  replicas: 1\n  replicas: 2\n").unwrap_err();
        assert!(twice.contains("replicas") && twice.contains('4'), "{twice}");
        let broken = parse("kind: A\nspec: [1, 2\nother: x\n").unwrap_err();
        assert!(broken.contains("line"), "{broken}");
    }
}
