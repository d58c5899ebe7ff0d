//! Tells the API service what the node observes of its pods.
//!
//! One report per pod waits at most: a newer one takes its place. A report leaves the table only when the server has
//! said what became of it, so none is lost to a server that is away, and a slow server is sent less, not more.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use pb::agent::v1::{PodReport, ReportStatusRequest};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{api::NodeApi, stream::waits};

/// The most reports in one request; more wait for the next.
const BATCH: usize = 128;

/// Takes reports. Clones share one table.
#[derive(Clone, Debug, Default)]
pub struct Reporter {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<Pending>,
    added: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    next: u64,
    reports: BTreeMap<String, (u64, PodReport)>,
}

/// What became of a pod's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server has it.
    Taken,
    /// The server has no such pod on this node: it must not run.
    Gone,
}

impl Reporter {
    /// Puts a report in line, in place of an older one of the same pod.
    pub fn report(&self, report: PodReport) {
        let Some(uid) = report.pod.as_ref().map(|pod| pod.uid.clone()) else { return };
        let mut pending = self.shared.pending.lock();
        pending.next += 1;
        let number = pending.next;
        pending.reports.insert(uid, (number, report));
        self.shared.added.notify_one();
    }

    /// Reports that wait, oldest first.
    fn batch(&self) -> Vec<(u64, PodReport)> {
        let pending = self.shared.pending.lock();
        let mut batch: Vec<_> = pending.reports.values().cloned().collect();
        batch.sort_by_key(|(number, _)| *number);
        batch.truncate(BATCH);
        batch
    }

    /// Takes a report out of the table unless a newer one took its place.
    fn settle(&self, uid: &str, number: u64) {
        let mut pending = self.shared.pending.lock();
        if pending.reports.get(uid).is_some_and(|(waiting, _)| *waiting == number) {
            pending.reports.remove(uid);
        }
    }

    /// Sends reports until `shutdown`; tells `settled` what became of each (uid, whether it said stopped, outcome).
    pub async fn run(
        self,
        mut api: NodeApi,
        node: String,
        shutdown: CancellationToken,
        mut settled: impl FnMut(&str, bool, Outcome),
    ) {
        let mut delays = waits();
        loop {
            let batch = self.batch();
            if batch.is_empty() {
                if shutdown.run_until_cancelled(self.shared.added.notified()).await.is_none() {
                    return;
                }
                continue;
            }
            let pods = batch.iter().map(|(_, report)| report.clone()).collect();
            let request = ReportStatusRequest { node_name: node.clone(), pods };
            let Some(sent) = shutdown.run_until_cancelled(api.report_status(request)).await else { return };
            let sent = sent.and_then(|response| match response.results.len() == batch.len() {
                true => Ok(response),
                false => Err(Status::internal("the answer does not tell what became of each report")),
            });
            match sent {
                Ok(response) => {
                    delays = waits();
                    for ((number, report), result) in batch.iter().zip(response.results) {
                        let uid = report.pod.as_ref().map_or("", |pod| pod.uid.as_str());
                        self.settle(uid, *number);
                        let outcome = match result.outcome.as_str() {
                            "Gone" => Outcome::Gone,
                            _ => Outcome::Taken,
                        };
                        settled(uid, report.stopped, outcome);
                    }
                }
                Err(status) => {
                    tracing::warn!(%status, pods = batch.len(), "cannot report status; trying again");
                    let wait = delays.next().unwrap_or_default();
                    if shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pb::agent::v1::PodRef;

    use super::*;

    fn report(uid: &str, stopped: bool) -> PodReport {
        PodReport { pod: Some(PodRef { uid: uid.into(), ..Default::default() }), status: None, stopped }
    }

    #[test]
    fn a_newer_report_replaces_a_waiting_one_and_outlives_the_older_ones_answer() {
        let reporter = Reporter::default();
        reporter.report(report("a", false));
        let sent = reporter.batch();
        reporter.report(report("a", true));
        reporter.settle("a", sent[0].0);
        let left = reporter.batch();
        assert_eq!(left.len(), 1);
        assert!(left[0].1.stopped);
        reporter.settle("a", left[0].0);
        assert!(reporter.batch().is_empty());
    }
}
