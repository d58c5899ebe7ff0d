//! The purity lint: decisions are functions of a snapshot, so the crates that decide can reach nothing else.
//!
//! Two looks: what a pure crate depends on (all the way down), and what its sources name.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use syn::{spanned::Spanned, visit::Visit};

/// The crates that decide.
const PURE: [&str; 3] = ["model", "plan", "check"];

/// Crates that no pure crate may reach, each with the reason.
const BANNED_CRATES: [(&str, &str); 8] = [
    ("tokio", "a decision does not wait"),
    ("tonic", "a decision calls nobody"),
    ("hyper", "a decision calls nobody"),
    ("etcd-client", "a decision reads its snapshot, not the store"),
    ("tracing", "a decision is a value, not a log line"),
    ("rand", "the same snapshot gives the same decision"),
    ("getrandom", "the same snapshot gives the same decision"),
    ("async-trait", "a decision does not wait"),
];

/// Ends of paths that no pure source may name, each with the reason.
const BANNED_PATHS: [(&[&str], &str); 16] = [
    (&["HashMap"], "its order is random: use BTreeMap"),
    (&["HashSet"], "its order is random: use BTreeSet"),
    (&["Instant"], "time is an argument"),
    (&["SystemTime"], "time is an argument"),
    (&["Timestamp", "now"], "time is an argument"),
    (&["Zoned", "now"], "time is an argument"),
    (&["std", "fs"], "a decision reads its snapshot, not files"),
    (&["std", "net"], "a decision calls nobody"),
    (&["std", "env"], "a decision reads its snapshot, not the environment"),
    (&["std", "process"], "a decision starts nothing"),
    (&["std", "thread"], "a decision does not wait"),
    (&["std", "io"], "a decision is a value"),
    (&["Mutex"], "a decision shares nothing"),
    (&["RwLock"], "a decision shares nothing"),
    (&["Uuid", "new_v4"], "ids are arguments"),
    (&["thread_rng"], "the same snapshot gives the same decision"),
];

/// Everything that breaks the rule.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for name in PURE {
        findings.extend(dependencies(root, name)?);
        for file in sources(&root.join("crates").join(name).join("src"))? {
            findings.extend(names(root, &file)?);
        }
    }
    Ok(findings)
}

fn dependencies(root: &Path, name: &str) -> Result<Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}", "--package", name])
        .output()
        .context("run cargo tree")?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).context("read what cargo tree printed")?;
    let reached: BTreeSet<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let banned = BANNED_CRATES.iter().filter(|(krate, _)| reached.contains(krate));
    Ok(banned.map(|(krate, reason)| format!("crates/{name}/Cargo.toml: reaches the crate {krate}: {reason}")).collect())
}

fn sources(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn names(root: &Path, file: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let syntax = syn::parse_file(&text).with_context(|| format!("parse {}", file.display()))?;
    let shown = file.strip_prefix(root).unwrap_or(file).display().to_string();
    let mut reader = Reader { file: shown, findings: Vec::new() };
    reader.visit_file(&syntax);
    Ok(reader.findings)
}

struct Reader {
    file: String,
    findings: Vec<String>,
}

impl Reader {
    fn look(&mut self, path: &[String], line: usize) {
        for (banned, reason) in BANNED_PATHS {
            let named =
                path.windows(banned.len()).any(|part| part.iter().map(String::as_str).eq(banned.iter().copied()));
            if named {
                self.findings.push(format!("{}:{line}: {} in a pure crate: {reason}", self.file, banned.join("::")));
            }
        }
    }

    fn use_tree(&mut self, tree: &syn::UseTree, path: &mut Vec<String>) {
        match tree {
            syn::UseTree::Path(part) => {
                path.push(part.ident.to_string());
                self.use_tree(&part.tree, path);
                path.pop();
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.use_tree(item, path)),
            syn::UseTree::Name(name) => self.use_leaf(&name.ident, path),
            syn::UseTree::Rename(name) => self.use_leaf(&name.ident, path),
            syn::UseTree::Glob(_) => {}
        }
    }

    fn use_leaf(&mut self, ident: &syn::Ident, path: &mut Vec<String>) {
        path.push(ident.to_string());
        self.look(path, ident.span().start().line);
        path.pop();
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        let test = module.attrs.iter().any(|attr| {
            attr.path().is_ident("cfg") && attr.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
        });
        // Tests may do what they need.
        if !test {
            syn::visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(&item.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.look(&parts, path.span().start().line);
        syn::visit::visit_path(self, path);
    }
}
