//! What a guarded transaction costs over a plain put of the client library, in one run against one etcd.
//!
//! `cargo run --release -p store --features testing --example latency [ROUNDS]`

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use bytes::Bytes;
use etcd_client::{Channel, Client};
use store::{Guard, Key, Op, Store, Txn, TxnOutcome, testing::EtcdProcess};

/// The size of a pod.
const VALUE: usize = 2048;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(2000), |rounds| rounds.parse())?;
    let etcd = EtcdProcess::start().await?;
    let store = etcd.store().await?;
    let channel = tonic::transport::Endpoint::from_shared(etcd.url.clone())?.connect_lazy();
    let mut raw = Client::from_channel(Channel::Tonic(channel), None).await?.kv_client();

    let key = Key::from_raw("/berth/pods/default/web-0");
    let value = Bytes::from(vec![b'x'; VALUE]);
    let create = Txn { guards: vec![Guard::Absent(key.clone())], ops: vec![Op::Put(key.clone(), value.clone(), None)] };
    let TxnOutcome::Committed(created) = store.txn(create).await? else { bail!("the key is there already") };
    let mut last = created;
    let (mut puts, mut txns, mut fours) = (Vec::new(), Vec::new(), Vec::new());
    // In turn, so that whatever else the machine does hits all alike.
    for _ in 0..rounds {
        let began = Instant::now();
        raw.put("/raw", value.to_vec(), None).await?;
        puts.push(began.elapsed());

        let began = Instant::now();
        let update = Txn {
            guards: vec![Guard::ModRevision(key.clone(), last)],
            ops: vec![Op::Put(key.clone(), value.clone(), None)],
        };
        let TxnOutcome::Committed(revision) = store.txn(update).await? else { bail!("nobody else writes") };
        txns.push(began.elapsed());

        // A pod, its claim, its volume and a status, under three guards.
        let mut ops = vec![Op::Put(key.clone(), value.clone(), None)];
        ops.extend((0..3).map(|i| Op::Put(Key::from_raw(format!("/berth/x/{i}")), value.clone(), None)));
        let guards = vec![
            Guard::ModRevision(key.clone(), revision),
            Guard::CreateRevision(key.clone(), created),
            Guard::Absent(Key::from_raw("/berth/x/none")),
        ];
        let began = Instant::now();
        let TxnOutcome::Committed(revision) = store.txn(Txn { guards, ops }).await? else {
            bail!("nobody else writes")
        };
        fours.push(began.elapsed());
        last = revision;
    }
    ensure!(rounds > 0, "no rounds");
    println!("{rounds} rounds of {VALUE} bytes          p50        p99");
    print("client library, put", &mut puts);
    print("store, one guarded object", &mut txns);
    print("store, four guarded objects", &mut fours);
    Ok(())
}

fn print(name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    println!("{name:<32} {:>9.1?} {:>9.1?}", times[times.len() / 2], times[times.len() * 99 / 100]);
}
