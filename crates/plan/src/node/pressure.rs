//! Whether a node runs short of memory, room on its disks, or processes.
//!
//! A condition is True from the moment at which less is left than a threshold allows, until for a while nothing was: a node
//! at the edge must not come and go, and every change is a write. While a condition's status stays, so do its words and
//! its time.

use std::{collections::BTreeMap, str::FromStr};

use jiff::{SignedDuration, Timestamp};
use model::quantity::Quantity;
use pb::objects::{Condition, Time};

/// Something that can run short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Bytes of memory.
    Memory,
    /// Bytes on the disk of pods' files and logs.
    NodeDisk,
    /// Inodes there.
    NodeInodes,
    /// Bytes on the disk of images and containers.
    ImageDisk,
    /// Processes and threads.
    Processes,
}

impl Signal {
    const ALL: [Signal; 5] = [Self::Memory, Self::NodeDisk, Self::NodeInodes, Self::ImageDisk, Self::Processes];

    /// The name in thresholds, as the kubelet has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::NodeDisk => "nodefs.available",
            Self::NodeInodes => "nodefs.inodesFree",
            Self::ImageDisk => "imagefs.available",
            Self::Processes => "pid.available",
        }
    }

    const fn pressure(self) -> Pressure {
        match self {
            Self::Memory => Pressure::Memory,
            Self::NodeDisk | Self::NodeInodes | Self::ImageDisk => Pressure::Disk,
            Self::Processes => Pressure::Processes,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pressure {
    Memory,
    Disk,
    Processes,
}

impl Pressure {
    const ALL: [Pressure; 3] = [Self::Memory, Self::Disk, Self::Processes];

    /// Type of the condition, and its reasons when there is pressure and when there is none.
    const fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Memory => ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
            Self::Disk => ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
            Self::Processes => ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
        }
    }
}

/// How much of something there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// What is left.
    pub available: u64,
    /// All.
    pub total: u64,
}

/// When there is too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    signal: Signal,
    least: Least,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Least {
    Amount(u64),
    Percent(u8),
}

impl Threshold {
    /// What must be left of so much.
    fn least(self, total: u64) -> u64 {
        match self.least {
            Least::Amount(amount) => amount,
            Least::Percent(percent) => {
                let share = u128::from(total) * u128::from(percent) / 100;
                u64::try_from(share).unwrap_or(u64::MAX)
            }
        }
    }
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, least) = text.split_once('<').ok_or("must be SIGNAL<AMOUNT, such as memory.available<100Mi")?;
        let signal = Signal::ALL
            .into_iter()
            .find(|signal| signal.name() == name)
            .ok_or_else(|| format!("there is no signal {name:?}: use {}", Signal::ALL.map(Signal::name).join(", ")))?;
        let least = match least.strip_suffix('%') {
            Some(percent) => {
                let percent = percent.parse().ok().filter(|percent| *percent <= 100);
                Least::Percent(percent.ok_or_else(|| format!("{least:?} must be a whole percentage up to 100%"))?)
            }
            None => {
                let amount: Quantity = least.parse().map_err(|why| format!("{least:?} {why}"))?;
                let amount = u64::try_from(amount.as_units());
                Least::Amount(amount.map_err(|_| format!("{least:?} must not be less than nothing"))?)
            }
        };
        Ok(Self { signal, least })
    }
}

/// What is known of a node's pressures. Begins with none known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pressures {
    /// When something was short last.
    short_at: BTreeMap<Pressure, Timestamp>,
    conditions: BTreeMap<Pressure, Condition>,
}

impl Pressures {
    /// What follows from a look at `now`. What could not be looked at counts as enough. A pressure ends when nothing was
    /// short for `rest`.
    #[must_use]
    pub fn look(
        mut self,
        now: Timestamp,
        levels: &BTreeMap<Signal, Level>,
        thresholds: &[Threshold],
        rest: SignedDuration,
    ) -> Self {
        let mut short: BTreeMap<Pressure, String> = BTreeMap::new();
        for threshold in thresholds {
            let Some(level) = levels.get(&threshold.signal) else { continue };
            let least = threshold.least(level.total);
            if level.available < least {
                let text = format!(
                    "{}: {} of {} are left, less than {least}",
                    threshold.signal.name(),
                    level.available,
                    level.total
                );
                short.entry(threshold.signal.pressure()).or_insert(text);
            }
        }
        for pressure in Pressure::ALL {
            let message = short.remove(&pressure);
            if message.is_some() {
                self.short_at.insert(pressure, now);
            }
            let lasts = self.short_at.get(&pressure).is_some_and(|at| now.duration_since(*at) < rest);
            self.set(pressure, message.is_some() || lasts, message.unwrap_or_default(), now);
        }
        self
    }

    fn set(&mut self, pressure: Pressure, pressed: bool, message: String, now: Timestamp) {
        let status = if pressed { "True" } else { "False" };
        if self.conditions.get(&pressure).is_some_and(|before| before.status == status) {
            return;
        }
        let (kind, short, enough) = pressure.words();
        let condition = Condition {
            r#type: kind.to_owned(),
            status: status.to_owned(),
            reason: if pressed { short } else { enough }.to_owned(),
            message,
            last_transition_time: Some(Time::from(now)),
            ..Default::default()
        };
        self.conditions.insert(pressure, condition);
    }

    /// The conditions of the node.
    pub fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.conditions.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: SignedDuration = SignedDuration::from_secs(300);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn thresholds() -> Vec<Threshold> {
        ["memory.available<100", "nodefs.available<10%", "imagefs.available<15%", "pid.available<10%"]
            .map(|text| text.parse().unwrap())
            .into()
    }

    fn look(before: Pressures, seconds: i64, levels: &[(Signal, u64)]) -> Pressures {
        let level = |(signal, available): &(Signal, u64)| (*signal, Level { available: *available, total: 1000 });
        before.look(at(seconds), &levels.iter().map(level).collect(), &thresholds(), REST)
    }

    fn statuses(pressures: &Pressures) -> Vec<&str> {
        pressures.conditions().map(|condition| condition.status.as_str()).collect()
    }

    #[test]
    fn less_than_a_threshold_is_pressure() {
        let seen =
            look(Pressures::default(), 0, &[(Signal::Memory, 100), (Signal::NodeDisk, 100), (Signal::Processes, 99)]);
        assert_eq!(statuses(&seen), ["False", "False", "True"]);
        let seen =
            look(Pressures::default(), 0, &[(Signal::Memory, 99), (Signal::NodeDisk, 900), (Signal::ImageDisk, 149)]);
        assert_eq!(statuses(&seen), ["True", "True", "False"]);
        let told: Vec<_> =
            seen.conditions().map(|c| (c.r#type.as_str(), c.reason.as_str(), c.message.as_str())).collect();
        assert_eq!(
            told[0],
            ("MemoryPressure", "NodeHasInsufficientMemory", "memory.available: 99 of 1000 are left, less than 100")
        );
        assert_eq!((told[2].1, told[2].2), ("NodeHasSufficientPID", ""));
    }

    #[test]
    fn pressure_ends_when_nothing_was_short_for_a_while() {
        let mut seen = look(Pressures::default(), 0, &[(Signal::Memory, 50)]);
        seen = look(seen, 100, &[(Signal::Memory, 500)]);
        assert_eq!(statuses(&seen)[0], "True");
        seen = look(seen, 200, &[(Signal::Memory, 50)]);
        seen = look(seen, 499, &[(Signal::Memory, 500)]);
        assert_eq!(statuses(&seen)[0], "True", "it was short at 200");
        seen = look(seen, 500, &[(Signal::Memory, 500)]);
        assert_eq!(statuses(&seen)[0], "False");
        let since = seen.conditions().next().unwrap().last_transition_time;
        assert_eq!(since, Some(Time::from(at(500))));
    }

    #[test]
    fn while_nothing_turns_nothing_is_new() {
        let first = look(Pressures::default(), 0, &[(Signal::Memory, 50), (Signal::NodeDisk, 500)]);
        let later = look(first.clone(), 10, &[(Signal::Memory, 40), (Signal::NodeDisk, 400)]);
        assert!(first.conditions().eq(later.conditions()), "neither words nor times");
        let blind = look(first.clone(), 20, &[]);
        assert!(first.conditions().eq(blind.conditions()));
    }

    #[test]
    fn thresholds_are_read_as_the_kubelet_writes_them() {
        let least = |text: &str| text.parse::<Threshold>().map(|threshold| threshold.least(1 << 30));
        assert_eq!(least("memory.available<100Mi"), Ok(100 << 20));
        assert_eq!(least("nodefs.inodesFree<5%"), Ok((1 << 30) / 20));
        for bad in ["memory.available", "cpu<1", "memory.available<x", "memory.available<101%", "memory.available<-1"] {
            assert!(bad.parse::<Threshold>().is_err(), "{bad}");
        }
    }
}
