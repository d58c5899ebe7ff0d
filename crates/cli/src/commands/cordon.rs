//! `berth cordon` and `berth uncordon`: no pod comes to a node any more, or they come again. What runs there stays.

use std::process::ExitCode;

use anyhow::{Result, bail};
use pb::{
    Kind,
    api::v1::{Object as AnyObject, object::Object as Variant},
};

use crate::{
    client::Client,
    edit, output,
    target::{self, Target},
};

/// Flags of `berth cordon` and `berth uncordon`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The nodes: `n1 n2` or `node/n1`
    #[arg(required = true, value_name = "NODE... | node/NODE...")]
    what: Vec<String>,
    /// Only check
    #[arg(long)]
    dry_run: bool,
}

/// Closes nodes to new pods, or opens them.
pub async fn run(client: Client, args: Args, closed: bool) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for name in nodes(&args.what)? {
        if let Err(error) = set(&client, &name, closed, args.dry_run).await {
            eprintln!("error: {error:#}");
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// The names of the nodes: the kind may be left out.
pub fn nodes(what: &[String]) -> Result<Vec<String>> {
    if what.iter().all(|one| !one.contains('/')) {
        return Ok(what.to_vec());
    }
    let name = |target: Target| match target {
        Target { kind: Kind::Node, name: Some(name), .. } => Ok(name),
        Target { kind, .. } => bail!("name nodes, such as node/n1, not a {kind}"),
    };
    target::targets(what)?.into_iter().map(name).collect()
}

/// Closes a node to new pods, or opens it, and says so.
pub async fn set(client: &Client, name: &str, closed: bool, dry_run: bool) -> Result<()> {
    let changed = edit::object(client, Kind::Node, name, dry_run, |object| close(object, closed)).await?;
    let already = if changed { "" } else { "already " };
    let word = if closed { "cordoned" } else { "uncordoned" };
    println!("{} {already}{word}{}", output::called(Kind::Node, name), edit::dry(dry_run));
    Ok(())
}

fn close(object: &mut AnyObject, closed: bool) -> Result<()> {
    let Some(Variant::Node(node)) = &mut object.object else { bail!("that is no node") };
    node.spec.get_or_insert_default().unschedulable = closed;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_named_with_or_without_their_kind() {
        let read = |what: &[&str]| nodes(&what.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(read(&["n1", "n2"]).unwrap(), ["n1", "n2"]);
        assert_eq!(read(&["node/n1", "no/n2"]).unwrap(), ["n1", "n2"]);
        assert!(read(&["pod/web-0"]).unwrap_err().to_string().contains("name nodes"));
    }
}
