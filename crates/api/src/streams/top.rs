//! What pods and nodes use now: every node that matters is asked, and those that do not answer are named.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::{StreamExt, stream};
use pb::{
    Kind, ObjectExt,
    agent::v1::{UsageRequest, UsageResponse},
    api::v1::{TopRequest, TopResponse, TopRow},
    objects::{Node, Pod},
};
use tokio::time::timeout;

use super::agent_address;
use crate::{Shared, error::Result, select::Selection};

/// How long a node may take.
const NODE: Duration = Duration::from_secs(5);

/// Nodes that are asked at the same time.
const AT_ONCE: usize = 128;

impl Shared {
    /// Says what pods or nodes use.
    pub async fn top(&self, request: TopRequest) -> Result<TopResponse> {
        let kind = if request.nodes { Kind::Node } else { Kind::Pod };
        let selection = Selection::parse(kind, &request.label_selector, "")?;
        let (nodes, _) = self.caches.list(Kind::Node, "").await?;
        let nodes: Vec<&Node> = nodes.iter().filter_map(|stored| stored.typed()).collect();
        if request.nodes {
            let wanted = nodes.into_iter().filter(|node| selection.matches(&any(node))).collect();
            let (answers, missing) = self.ask(wanted).await;
            let row =
                |(node, answer): (String, UsageResponse)| TopRow { node, usage: answer.node, ..TopRow::default() };
            return Ok(TopResponse { rows: answers.into_iter().map(row).collect(), missing });
        }
        let (pods, _) = self.caches.list(Kind::Pod, &request.namespace).await?;
        let pods = pods.iter().filter(|stored| selection.matches(&stored.object)).filter_map(|stored| stored.typed());
        let pods: BTreeMap<&str, &Pod> = pods.map(|pod: &Pod| (pod.uid(), pod)).collect();
        let homes: BTreeSet<&str> =
            pods.values().filter_map(|pod| pod.spec.as_ref()).map(|s| s.node_name.as_str()).collect();
        let (answers, missing) = self.ask(nodes.into_iter().filter(|node| homes.contains(node.name())).collect()).await;
        let mut rows = Vec::new();
        for (node, answer) in answers {
            for one in answer.containers.into_iter().filter(|one| pods.contains_key(one.pod_uid.as_str())) {
                let (namespace, pod, container) = (one.namespace, one.pod, one.container);
                rows.push(TopRow { namespace, pod, container, node: node.clone(), usage: one.usage });
            }
        }
        rows.sort_by(|a, b| (&a.namespace, &a.pod, &a.container).cmp(&(&b.namespace, &b.pod, &b.container)));
        Ok(TopResponse { rows, missing })
    }

    /// What each node answered, in order of their names, and why others did not.
    async fn ask(&self, nodes: Vec<&Node>) -> (BTreeMap<String, UsageResponse>, Vec<String>) {
        let nodes: Vec<_> = nodes.iter().map(|node| (node.name().to_owned(), agent_address(node))).collect();
        let questions = nodes.into_iter().map(|(name, address)| async {
            let answer = self.usage_of(address).await.map_err(|why| format!("{name}: {why}"));
            (name, answer)
        });
        let answers: Vec<_> = stream::iter(questions).buffer_unordered(AT_ONCE).collect().await;
        let (mut known, mut missing) = (BTreeMap::new(), Vec::new());
        for (name, answer) in answers {
            match answer {
                Ok(answer) => drop(known.insert(name, answer)),
                Err(why) => missing.push(why),
            }
        }
        missing.sort();
        (known, missing)
    }

    async fn usage_of(&self, address: Option<String>) -> std::result::Result<UsageResponse, String> {
        let address = address.ok_or("the node has not said where its agent answers")?;
        let mut agent = self.agents.client(&address).map_err(|error| error.to_string())?;
        match timeout(NODE, agent.usage(UsageRequest {})).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(status.message().to_owned()),
            Err(_) => Err(format!("no answer within {NODE:?}")),
        }
    }
}

fn any(node: &Node) -> pb::api::v1::Object {
    pb::Object::into_any(node.clone())
}
