//! The recorded cases as they stand in the files (`tests/oracle/SCHEMA.md`).

use std::collections::BTreeSet;

use serde::Deserialize;

/// One decision.
#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    pub id: String,
    pub class: String,
    pub now: String,
    pub gates: Gates,
    pub set: Set,
    pub revisions: Vec<Revision>,
    pub pods: Vec<Pod>,
    pub claims: Vec<Claim>,
    #[serde(default)]
    pub faults: Vec<serde_json::Value>,
    pub expect: Expect,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Gates {
    pub max_unavailable: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Set {
    pub name: String,
    pub generation: i64,
    pub replicas: u32,
    pub start: Option<u32>,
    pub policy: String,
    pub strategy: Strategy,
    pub min_ready: u32,
    pub retention: Option<Retention>,
    pub claims: Vec<String>,
    pub history_limit: i64,
    pub deleting: bool,
    pub template: i64,
    pub status: Status,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Strategy {
    pub r#type: String,
    pub rolling: bool,
    pub partition: Option<u32>,
    pub max_unavailable: Option<serde_json::Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Retention {
    pub deleted: String,
    pub scaled: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Status {
    pub observed: i64,
    pub replicas: i32,
    pub ready: i32,
    pub available: i32,
    pub current: i32,
    pub updated: i32,
    pub current_rev: Option<i64>,
    pub update_rev: Option<i64>,
    pub collisions: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Revision {
    pub id: i64,
    pub template: i64,
    pub revision: i64,
    pub owner: Option<String>,
    #[serde(default)]
    pub no_select: bool,
    #[serde(default)]
    pub variant: i64,
    #[serde(default)]
    pub collides: bool,
    #[serde(default)]
    pub corrupt: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Pod {
    pub o: u32,
    pub uid: String,
    pub name: Option<String>,
    pub phase: String,
    pub scheduled: bool,
    pub ready_age: Option<i64>,
    pub terminating: bool,
    pub rev: Option<i64>,
    pub volumes: BTreeSet<String>,
    pub identity: Option<String>,
    pub owner: Option<String>,
    #[serde(default)]
    pub no_select: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Claim {
    pub t: String,
    pub o: u32,
    #[serde(default)]
    pub terminating: bool,
    pub owners: Vec<Owner>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Owner {
    pub k: String,
    pub u: String,
    #[serde(default)]
    pub c: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Expect {
    pub actions: Vec<Act>,
    pub status: Option<Status>,
    pub status_written: Option<Status>,
    #[serde(default)]
    pub errors: Vec<String>,
    pub requeue: Option<u64>,
}

/// One write, recorded or planned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Act {
    pub op: String,
    pub o: Option<u32>,
    pub t: Option<String>,
    pub name: Option<String>,
    pub rev: Option<i64>,
    pub template: Option<i64>,
    pub revision: Option<i64>,
    pub owners: Option<Vec<Owner>>,
    #[serde(default)]
    pub fix_identity: bool,
    #[serde(default)]
    pub fix_storage: bool,
    #[serde(default)]
    pub existing: bool,
    pub err: Option<String>,
}

/// A story from an empty cluster.
#[derive(Clone, Debug, Deserialize)]
pub struct Trajectory {
    pub id: String,
    pub gates: Gates,
    pub kubelet: Kubelet,
    pub set: Set,
    pub ticks: Vec<Tick>,
    pub r#final: Final,
}

/// How a story ended.
#[derive(Clone, Debug, Deserialize)]
pub struct Final {
    pub quiet: bool,
    pub gone: bool,
}

/// Steps that the modelled kubelet needs.
#[derive(Clone, Debug, Deserialize)]
pub struct Kubelet {
    pub start: u32,
    pub ready: u32,
    pub term: u32,
    pub broken: BTreeSet<i64>,
    pub tick: i64,
}

/// Ordinal, phase, age of readiness, terminating, revision, uid.
pub type PodShown = (u32, String, Option<i64>, bool, Option<i64>, String);

/// Template, ordinal, terminating, owners as kind and uid.
pub type ClaimShown = (String, u32, bool, Vec<String>);

#[derive(Clone, Debug, Deserialize)]
pub struct Tick {
    pub t: u32,
    #[serde(default)]
    pub events: Vec<Event>,
    pub pods: Option<Vec<PodShown>>,
    pub claims: Option<Vec<ClaimShown>>,
    #[serde(default)]
    pub actions: Vec<Act>,
    pub status: Option<Status>,
    #[serde(default)]
    pub errors: serde_json::Value,
    pub requeue: Option<u64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    pub e: String,
    #[serde(flatten)]
    pub with: serde_json::Map<String, serde_json::Value>,
}
