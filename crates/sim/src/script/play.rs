//! How a story is played: without faults, and then segment by segment with one mishap each.
//!
//! A segment ends at a rest. A history with a mishap begins where the segment does, in a fork of the history without, and
//! ends with it: both have come to the same then.

use std::{ops::Range, sync::Arc};

use super::{Broken, Case, Failure, Faults, Kind, Mishap, Stage, Story, Tally, Who};
use crate::wire::{Trouble, When};

impl Story {
    /// The story without faults for one case, in words.
    ///
    /// # Errors
    /// What went wrong.
    pub fn tell(&self, case: Case) -> Result<String, Failure> {
        let mut stage = Stage::new(case, self.blind_to.clone()).fork();
        stage.history = Some(Vec::new());
        let played = self.play(&mut stage, 0..self.steps.len(), true);
        let history = stage.history.take().unwrap_or_default();
        match played {
            Ok(()) => Ok(format!("{} ({case})\n{}\n", self.name, history.join("\n"))),
            Err((step, what)) => Err(Failure { story: self.name, case, mishap: None, step, what, history }),
        }
    }

    /// Plays the story in every case, without faults and with every single call going wrong.
    ///
    /// # Errors
    /// The first thing that went wrong.
    pub fn hold(&self, faults: Faults) -> Result<Tally, Failure> {
        let mut tally = Tally::default();
        for case in Case::all().filter(|case| (self.cases)(*case)) {
            self.hold_in(case, faults, &mut tally)?;
        }
        Ok(tally)
    }

    fn hold_in(&self, case: Case, which: Faults, tally: &mut Tally) -> Result<(), Failure> {
        // Told again from the beginning if it fails, this time in words.
        let in_words = |at: usize, mishap, broken| self.failure(case, at, mishap, broken);
        let mut stage = Stage::new(case, self.blind_to.clone());
        let mut at = 0;
        while at < self.steps.len() {
            let start = stage.fork();
            stage = stage.fork();
            let end = self.segment(at);
            self.play(&mut stage, at..end, true).map_err(|broken| in_words(at, None, broken))?;
            tally.histories += usize::from(at == 0);
            tally.commits += stage.commits;
            let rests = stage.portrait();
            let mut mishaps = faults(&stage);
            if self.steps.get(at..end).unwrap_or_default().iter().any(|step| step.kind == Kind::Meanwhile) {
                mishaps.extend((1..stage.wire(Who::Controller).calls()).map(Mishap::Interrupted));
            }
            for mishap in which.of(case, mishaps) {
                let mut again = start.fork();
                again.meet(mishap);
                let came = self.play(&mut again, at..end, false);
                let came = match mishap {
                    Mishap::Call(..) => came.and_then(|()| agree(&rests, &again.portrait())),
                    Mishap::Interrupted(_) => came,
                };
                came.map_err(|broken| in_words(at, Some(mishap), broken))?;
                tally.histories += 1;
                tally.commits += again.commits;
            }
            at = end;
        }
        Ok(())
    }

    /// Where the segment that begins at a step ends: after its first rest and the looks at it.
    fn segment(&self, from: usize) -> usize {
        let kinds = || self.steps.iter().enumerate().skip(from).map(|(at, step)| (at, step.kind));
        let rest = kinds().find(|(_, kind)| *kind == Kind::Rest).map_or(self.steps.len(), |(at, _)| at + 1);
        kinds().find(|(at, kind)| *at >= rest && *kind != Kind::Look).map_or(self.steps.len(), |(at, _)| at)
    }

    /// Plays some of the steps; with a fault, only those looks that follow a rest.
    fn play(&self, stage: &mut Stage, steps: Range<usize>, faultless: bool) -> Result<(), Broken> {
        let mut rested = false;
        for step in self.steps.get(steps).unwrap_or_default() {
            rested = step.kind == Kind::Rest || (rested && step.kind == Kind::Look);
            if step.kind == Kind::Look && !rested && !faultless {
                continue;
            }
            stage.note(|| format!("> {}", step.text));
            if step.kind == Kind::Meanwhile {
                stage.meanwhile(Arc::clone(&step.play));
                continue;
            }
            (step.play)(stage).map_err(|what| (step.text.clone(), what))?;
            if step.kind == Kind::Act {
                stage.watch().map_err(|what| (step.text.clone(), what))?;
            }
        }
        Ok(())
    }

    /// Plays a history that failed once more, to tell it in words.
    fn failure(&self, case: Case, at: usize, mishap: Option<Mishap>, broken: Broken) -> Failure {
        let (step, what) = broken;
        let mut stage = Stage::new(case, self.blind_to.clone());
        let (mut from, mut played) = (0, Ok(()));
        while from < at && played.is_ok() {
            stage = stage.fork();
            let end = self.segment(from);
            played = self.play(&mut stage, from..end, true);
            from = end;
        }
        stage = stage.fork();
        stage.history = Some(Vec::new());
        if let Some(mishap) = mishap {
            stage.meet(mishap);
        }
        // It fails as it did before.
        let again = played.and_then(|()| self.play(&mut stage, at..self.segment(at), mishap.is_none()));
        debug_assert!(again.is_err() || mishap.is_some());
        Failure { story: self.name, case, mishap, step, what, history: stage.history.take().unwrap_or_default() }
    }
}

impl Faults {
    /// Those of all faults that a case is played with.
    fn of<T>(self, case: Case, all: Vec<T>) -> impl Iterator<Item = T> {
        let turn = Case::all().position(|other| other == case).unwrap_or(0);
        let every = if self == Self::Every { 1 } else { Case::all().count() };
        all.into_iter().enumerate().filter(move |(at, _)| (at + turn) % every == 0).map(|(_, fault)| fault)
    }
}

/// Every way in which one call of what was played can go wrong.
fn faults(played: &Stage) -> Vec<Mishap> {
    let mut faults = Vec::new();
    for who in [Who::Controller, Who::Collector] {
        let wire = played.wire(who);
        for call in 0..wire.calls() {
            faults.extend(
                [Trouble::Error(When::Before), Trouble::Crash(When::Before)].map(|how| Mishap::Call(who, call, how)),
            );
            if wire.was_write(call) {
                faults.extend(
                    [Trouble::Error(When::After), Trouble::Crash(When::After)].map(|how| Mishap::Call(who, call, how)),
                );
            }
        }
    }
    faults
}

/// Whether two histories come to the same.
fn agree(without: &[String], with: &[String]) -> Result<(), Broken> {
    if without == with {
        return Ok(());
    }
    let less = without.iter().filter(|line| !with.contains(line)).map(|line| format!("without the fault: {line}"));
    let more = with.iter().filter(|line| !without.contains(line)).map(|line| format!("with it:           {line}"));
    Err(("the fault changes where the system comes to rest".to_owned(), less.chain(more).collect()))
}
