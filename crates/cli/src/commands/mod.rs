//! The commands of users, one module each.

pub mod apply;
pub mod cordon;
pub mod cp;
pub mod delete;
pub mod describe;
pub mod diff;
pub mod drain;
pub mod evict;
pub mod exec;
pub mod get;
pub mod label;
pub mod logs;
pub mod port_forward;
pub mod rollout;
pub mod scale;
pub mod taint;
pub mod top;
pub mod volume;
pub mod wait;
pub mod why;

pub use ::lab;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use pb::{
    Kind,
    api::v1::{Object as AnyObject, WatchRequest},
    objects::{Condition, Node},
};

use crate::{
    client::{Client, ClientArgs},
    follow::{Follow, Told},
};

/// The watch of one object.
pub fn watch_of(client: &Client, kind: Kind, name: &str) -> WatchRequest {
    WatchRequest {
        kind: kind.name().to_owned(),
        namespace: client.namespace_of(kind),
        field_selector: format!("metadata.name={name}"),
        ..WatchRequest::default()
    }
}

/// Whether a condition is True.
pub fn holds(conditions: &[Condition], wanted: &str) -> bool {
    conditions.iter().any(|condition| condition.r#type.eq_ignore_ascii_case(wanted) && condition.status == "True")
}

/// Fails a wait that takes too long; no limit means for ever.
pub async fn within<T>(limit: Option<Duration>, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    match limit {
        None => work.await,
        Some(limit) => match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => bail!("timed out after {limit:?} while waiting for {what}"),
        },
    }
}

/// Returns when the cluster of a lab has all its nodes ready.
pub async fn lab_ready(lab: &lab::Lab, limit: Duration) -> Result<()> {
    let args = ClientArgs { server: lab.server(), namespace: String::new() };
    let wanted = usize::from(lab.layout().nodes);
    let all = WatchRequest { kind: Kind::Node.name().to_owned(), ..WatchRequest::default() };
    let mut follow = Follow::new(&args.connect()?, all);
    let mut ready = std::collections::BTreeSet::new();
    let work = async {
        while ready.len() < wanted {
            match follow.next().await? {
                Told::Is(object) if node_ready(&object) => drop(ready.insert(object.meta().name.clone())),
                Told::Is(object) | Told::Gone(object) => drop(ready.remove(&object.meta().name)),
                Told::Anew => ready.clear(),
                Told::Current => {}
            }
        }
        Ok(())
    };
    within(Some(limit), "the nodes to be ready", work).await.context("see `berth get nodes` and `berth lab status`")
}

fn node_ready(object: &AnyObject) -> bool {
    let conditions = |node: &Node| node.status.as_ref().map(|status| holds(&status.conditions, "Ready"));
    <Node as pb::Object>::peek(object).and_then(conditions) == Some(true)
}
