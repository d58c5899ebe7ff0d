//! Hollow nodes against an API service in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends here")]

mod fake;

use std::time::Duration;

use agent::Config;
use clap::Parser;
use fake::Cluster;
use pb::{
    agent::v1::PodBundle,
    objects::{Container, ObjectMeta, Pod, PodSpec},
};
use runtime::CancellationToken;

const LIMIT: Duration = Duration::from_secs(20);

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    config: Config,
}

fn config(api: &str, count: u32) -> Config {
    let count = count.to_string();
    Line::parse_from(["agent", "--listen", "127.0.0.1:0", "--node-name", "hollow", "--api", api, "--hollow", &count])
        .config
}

fn pod(uid: &str) -> PodBundle {
    let pod = Pod {
        metadata: Some(ObjectMeta {
            name: uid.into(),
            namespace: "default".into(),
            uid: uid.into(),
            ..Default::default()
        }),
        spec: Some(PodSpec {
            containers: vec![Container { name: "main".into(), ..Default::default() }],
            ..Default::default()
        }),
        ..Default::default()
    };
    PodBundle { pod: Some(pod), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_hollow_nodes_become_ready_and_go_at_once() {
    let cluster = Cluster::start("127.0.0.1").await;
    let shutdown = CancellationToken::new();
    let agent = tokio::spawn(agent::run(config(&cluster.url, 100), shutdown.clone()));
    cluster.until("100 nodes are registered", LIMIT, |c| c.node("hollow-99").is_some()).await;

    for index in 0..100 {
        cluster.put_pod(&format!("hollow-{index}"), pod(&format!("web-{index}")));
    }
    cluster.until("all ready", LIMIT, |c| (0..100).all(|i| c.is_ready(&format!("web-{i}")))).await;
    let reports = cluster.reports();
    assert_eq!(reports, 100, "one report a pod");

    // A stream that breaks repeats nothing.
    cluster.drop_streams();
    cluster.delete_pod("web-7");
    cluster.until("web-7 is stopped", LIMIT, |c| c.stopped("web-7")).await;
    assert_eq!(cluster.reports(), 101);

    // A lease that ended is taken anew.
    let before = cluster.heartbeats();
    cluster.forget_leases();
    cluster.until("heartbeats go on", LIMIT, |c| c.heartbeats() > before + 200).await;

    shutdown.cancel();
    agent.await.unwrap().unwrap();
}
