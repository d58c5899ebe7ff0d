//! What the node and its containers use of processors and memory.
//!
//! Processors are counted over a moment between two looks: nothing is kept between questions, and nothing is measured
//! while nobody asks.

use std::{collections::BTreeMap, time::Duration};

use pb::{
    agent::v1::{ContainerUsage, UsageResponse},
    api::v1::Usage,
};
use tonic::Status;

use crate::cri::{Cri, inspect::Measured};

/// Between the two looks.
const MOMENT: Duration = Duration::from_millis(500);

/// Looks twice.
pub async fn usage(cri: &Cri) -> Result<UsageResponse, Status> {
    let (before, node_before) = (cri.measure().await?, Machine::look()?);
    tokio::time::sleep(MOMENT).await;
    let (after, node_after) = (cri.measure().await?, Machine::look()?);
    Ok(UsageResponse { node: Some(node_after.since(node_before)), containers: containers(&before, after) })
}

/// Those that ran at both looks.
fn containers(before: &[Measured], after: Vec<Measured>) -> Vec<ContainerUsage> {
    let before: BTreeMap<&str, &Measured> = before.iter().map(|one| (one.id.as_str(), one)).collect();
    let usage = |now: Measured| {
        let then = before.get(now.id.as_str())?;
        let (used, passed) = (now.cpu.saturating_sub(then.cpu), now.at.saturating_sub(then.at));
        let milli_cpu = match u64::try_from(passed) {
            Ok(passed) if passed > 0 => used.saturating_mul(1000) / passed,
            _ => 0,
        };
        let [namespace, pod, pod_uid, container] = now.names;
        let usage = Usage { milli_cpu: bounded(milli_cpu), memory_bytes: bounded(now.memory) };
        Some(ContainerUsage { namespace, pod, pod_uid, container, usage: Some(usage) })
    };
    after.into_iter().filter_map(usage).collect()
}

fn bounded(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The machine at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Machine {
    /// Ticks of all processors: at work, and in all.
    busy: u64,
    total: u64,
    processors: u64,
    memory: u64,
}

impl Machine {
    fn look() -> Result<Self, Status> {
        let read = |path: &str| {
            std::fs::read_to_string(path).map_err(|error| Status::internal(format!("cannot read {path}: {error}")))
        };
        let unknown = || Status::internal("/proc/stat and /proc/meminfo are not as expected");
        Self::parse(&read("/proc/stat")?, &read("/proc/meminfo")?).ok_or_else(unknown)
    }

    fn parse(stat: &str, meminfo: &str) -> Option<Self> {
        let all = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        // user nice system idle iowait irq softirq steal; what guests use is part of user.
        let ticks: Vec<u64> = all.split_whitespace().take(8).filter_map(|ticks| ticks.parse().ok()).collect();
        let total: u64 = ticks.iter().sum();
        let idle = ticks.get(3)? + ticks.get(4)?;
        let one =
            |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        let processors = stat.lines().filter(one).count();
        let kib = |name: &str| -> Option<u64> {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let memory = kib("MemTotal:")?.saturating_sub(kib("MemAvailable:")?) * 1024;
        Some(Self { busy: total.saturating_sub(idle), total, processors: processors as u64, memory })
    }

    fn since(self, before: Self) -> Usage {
        let passed = self.total.saturating_sub(before.total).max(1);
        let milli_cpu = self.busy.saturating_sub(before.busy) * 1000 * self.processors / passed;
        Usage { milli_cpu: bounded(milli_cpu), memory_bytes: bounded(self.memory) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(id: &str, at: i64, cpu: u64) -> Measured {
        Measured { id: id.into(), names: ["default", "web-0", "u", "nginx"].map(String::from), at, cpu, memory: 4096 }
    }

    #[test]
    fn a_container_is_measured_between_two_looks() {
        let before = [measured("a", 0, 0), measured("gone", 0, 0)];
        let after = vec![measured("a", 500_000_000, 125_000_000), measured("new", 500_000_000, 9)];
        let found = containers(&before, after);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].usage, Some(Usage { milli_cpu: 250, memory_bytes: 4096 }));
        assert_eq!((found[0].pod.as_str(), found[0].container.as_str()), ("web-0", "nginx"));
        let still = containers(&before, vec![measured("a", 0, 7)]);
        assert_eq!(still[0].usage.unwrap().milli_cpu, 0, "no time, no rate");
    }

    #[test]
    fn a_machine_is_measured_over_all_its_processors() {
        let meminfo = "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\n";
        let look = |line: &str| Machine::parse(&format!("{line}\ncpu0 1\ncpu1 1\nintr 5\n"), meminfo).unwrap();
        let before = look("cpu  100 0 0 100 0 0 0 0 0 0");
        let after = look("cpu  125 0 25 140 10 0 0 0 99 0");
        assert_eq!(after.since(before), Usage { milli_cpu: 1000, memory_bytes: 600 * 1024 });
        assert_eq!(after.since(after).milli_cpu, 0);
        assert_eq!(Machine::parse("", meminfo), None);
    }
}
