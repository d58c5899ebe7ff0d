//! What every application goes through: it forms its cluster, is written to, loses each member in turn, is rolled under
//! the writes, and holds at the end what it acknowledged.

use std::{future::Future, time::Duration};

use anyhow::{Context, Result, ensure};
use pb::{ObjectExt, objects::PersistentVolumeClaim};
use tokio::time::Instant;

use super::{Application, loss::Loss, stage::Stage, writer::Writer};
use crate::{LabGuard, inventory};

/// For one step of the story.
const PATIENCE: Duration = Duration::from_secs(150);
/// Writes between two things that happen.
const BREATH: usize = 16;

/// One application on a lab of its own.
pub struct Story<'a> {
    lab: &'a LabGuard,
    stage: Stage,
    application: Application,
    needed: Vec<Application>,
    begun: Instant,
}

impl<'a> Story<'a> {
    /// A story that has not begun.
    pub fn new(lab: &'a LabGuard, application: Application, all: &[Application]) -> Result<Self> {
        let needed = all.iter().filter(|one| application.needs.contains(&one.name)).copied().collect();
        Ok(Self { lab, stage: Stage::new(&lab.lab.server())?, application, needed, begun: Instant::now() })
    }

    /// Tells it; what a user would look at is printed if it goes wrong.
    pub async fn tell(&self) -> Result<()> {
        let told = self.play().await.context(self.application.name);
        if told.is_err() {
            println!("{}\n{}", self.stage.explain(self.application).await, self.lab.complaints());
        }
        told
    }

    async fn play(&self) -> Result<()> {
        let (stage, application) = (&self.stage, self.application);
        for needed in &self.needed {
            stage.bring_up(*needed, soon()).await.with_context(|| format!("bring {} up", needed.name))?;
        }
        stage.bring_up(application, soon()).await.context("bring it up")?;
        self.say("its cluster is formed");
        stage.start_client(application, soon()).await.context("start the client")?;
        let writer = Writer::start(stage, application);
        writer.goes_on(BREATH, soon()).await?;
        self.say("takes writes");

        for loss in [Loss::Processes, Loss::Pod, Loss::ProcessesAndAgent] {
            for ordinal in 0..application.members {
                self.lose(&writer, ordinal, loss).await.with_context(|| format!("member {ordinal}, {loss}"))?;
            }
        }
        self.roll(&writer).await.context("rolling update")?;
        self.everything_is_there(writer).await?;

        let whole = [&[application], self.needed.as_slice()].concat();
        stage.stop_client().await?;
        for one in whole {
            stage.take_down(one).await?;
        }
        inventory::settled(self.lab, &stage.client, soon()).await?;
        self.say("deleted, and nothing is left");
        Ok(())
    }

    /// Loses a member while writes go on; it comes back with what it had.
    async fn lose(&self, writer: &Writer, ordinal: usize, loss: Loss) -> Result<()> {
        let name = format!("{}-{ordinal}", self.application.set);
        let claims = self.claims().await?;
        let member = ordinal.to_string();
        let read = self.application.commands.read_member;
        let held = self.stage.read_until(read, &[&member], soon(), |_| Vec::new()).await.context("before the loss")?;
        writer.longest_gap();
        let lost = Instant::now();
        loss.strike(self.lab, &self.stage, &name, soon()).await?;
        let back = lost.elapsed();
        ensure!(self.claims().await? == claims, "{name} came back with another volume");
        let missing = |now: &_| held.difference(now).map(|number| format!("{name} has lost {number}")).collect();
        self.stage.read_until(read, &[&member], soon(), missing).await.context("after the loss")?;
        writer.goes_on(BREATH, soon()).await?;
        self.say(&format!(
            "{name} {loss}: back after {:.1} s with all of {} writes; longest time without a write {:.1} s",
            back.as_secs_f32(),
            held.len(),
            writer.longest_gap().as_secs_f32()
        ));
        Ok(())
    }

    /// Replaces every pod for a new template while writes go on.
    async fn roll(&self, writer: &Writer) -> Result<()> {
        let before = writer.acknowledged().len();
        writer.longest_gap();
        let target = format!("sts/{}", self.application.set);
        let begun = Instant::now();
        self.stage.berth(&["rollout", "restart", &target]).await?;
        within(self.stage.berth(&["rollout", "status", &target])).await?;
        self.stage.whole(self.application, soon()).await?;
        let written = writer.acknowledged().len() - before;
        ensure!(written > 0, "no write was acknowledged during the rolling update");
        writer.goes_on(BREATH, soon()).await?;
        self.say(&format!(
            "rolled in {:.1} s under {written} writes; longest time without a write {:.1} s",
            begun.elapsed().as_secs_f32(),
            writer.longest_gap().as_secs_f32()
        ));
        Ok(())
    }

    /// Ends the writing and reads everything.
    async fn everything_is_there(&self, writer: Writer) -> Result<()> {
        let ledger = writer.stop().await;
        let commands = self.application.commands;
        let wrong = |found: &_| ledger.check(found);
        let found = self.stage.read_until(commands.read, &[], soon(), wrong).await.context("at the end")?;
        if self.application.replicated {
            for ordinal in 0..self.application.members {
                let read = self.stage.read_until(commands.read_member, &[&ordinal.to_string()], soon(), wrong).await;
                read.with_context(|| format!("member {ordinal} at the end"))?;
            }
        }
        self.say(&format!(
            "all of {} acknowledged writes are there ({} in all)",
            ledger.acknowledged().len(),
            found.len()
        ));
        Ok(())
    }

    /// Which volume each claim has.
    async fn claims(&self) -> Result<Vec<(String, String)>> {
        let (claims, _) = self.stage.client.list::<PersistentVolumeClaim>(self.application.selector).await?;
        let volume = |claim: &PersistentVolumeClaim| claim.spec.clone().unwrap_or_default().volume_name;
        Ok(claims.iter().map(|claim| (claim.name().to_owned(), volume(claim))).collect())
    }

    fn say(&self, what: &str) {
        println!("{:>6.1} s  {}: {what}", self.begun.elapsed().as_secs_f32(), self.application.name);
    }
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

async fn within<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(PATIENCE, work).await.with_context(|| format!("not done after {PATIENCE:?}"))?
}
