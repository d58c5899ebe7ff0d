//! What is preferred among nodes that can take a pod: taints that would rather keep it away, labels, spread, and other
//! pods, weighed as Kubernetes weighs them, in whole numbers.

use super::{NodeFacts, Request, peers::Peers};

/// How much each kind of preference weighs.
const TAINTS: i64 = 3;
const LABELS: i64 = 2;
const SPREAD: i64 = 2;
const OTHERS: i64 = 2;
/// The best note of one kind.
const BEST: i64 = 100;

/// How much is to be said for each of these nodes: more is better. All are equal where nothing is preferred.
pub(super) fn scores(request: &Request, peers: &Peers<'_>, nodes: &[(&str, &NodeFacts)]) -> Vec<i64> {
    let rules = &request.rules;
    let mut scores = vec![0; nodes.len()];
    let mut add = |weight: i64, notes: Vec<i64>| {
        for (score, note) in scores.iter_mut().zip(notes) {
            *score += weight * note;
        }
    };
    let disliked: Vec<i64> = nodes.iter().map(|(_, node)| rules.disliked(&node.taints)).collect();
    if disliked.iter().any(|count| *count > 0) {
        add(TAINTS, share_of_most(&disliked).into_iter().map(|note| BEST - note).collect());
    }
    let labels: Vec<i64> = nodes.iter().map(|(name, node)| rules.node_score(name, &node.labels)).collect();
    if labels.iter().any(|weight| *weight > 0) {
        add(LABELS, share_of_most(&labels));
    }
    if rules.spread.iter().any(|spread| !spread.required) {
        add(SPREAD, evenness(&peers.unevenness(request, nodes)));
    }
    if peers.pulls() {
        let pulls: Vec<i64> = nodes.iter().map(|(name, node)| peers.pull(name, node)).collect();
        let (least, most) = (min(&pulls), max(&pulls));
        let note = |pull: i64| if most > least { BEST * (pull - least) / (most - least) } else { 0 };
        add(OTHERS, pulls.into_iter().map(note).collect());
    }
    scores
}

fn min(notes: &[i64]) -> i64 {
    notes.iter().min().copied().unwrap_or(0)
}

fn max(notes: &[i64]) -> i64 {
    notes.iter().max().copied().unwrap_or(0)
}

fn share_of_most(counts: &[i64]) -> Vec<i64> {
    let most = max(counts);
    counts.iter().map(|count| if most > 0 { BEST * count / most } else { 0 }).collect()
}

/// The least uneven is the best; where the label is missing is the worst.
fn evenness(uneven: &[Option<i64>]) -> Vec<i64> {
    let known: Vec<i64> = uneven.iter().flatten().copied().collect();
    let (least, most) = (min(&known), max(&known));
    let note = |sum: i64| if most > 0 { BEST * (most + least - sum) / most } else { BEST };
    uneven.iter().map(|sum| sum.map_or(0, note)).collect()
}
