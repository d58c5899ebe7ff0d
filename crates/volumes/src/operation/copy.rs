//! Copies a volume from the agent of one node to another's, and says how far it is.

use std::{sync::Arc, time::Duration};

use pb::{
    Object, ObjectExt,
    agent::v1::{ImportVolumeRequest, ImportVolumeResponse},
    objects::PersistentVolumeClaim,
};
use plan::volume::{held, operation};
use store::{Key, TxnOutcome};
use tokio::time::{Instant, timeout};

use super::{Facts, Operator};
use crate::{data::refusal, drivers::CallError, lookup::Lookup, worker::Trouble};

/// Progress is written once in this time.
const PROGRESS: Duration = Duration::from_secs(1);

const WHAT: &str = "import the volume";

impl Operator {
    /// Gives the claim as it is when all has arrived and is proven.
    pub(super) async fn import(
        &self,
        facts: &Facts,
        from: &str,
        to: &str,
    ) -> Result<Arc<PersistentVolumeClaim>, Trouble> {
        let inner = &self.manager.inner;
        let (Some(source), Some(target)) = (facts.volume.object(), facts.copy.object()) else {
            return Err(uncertain("a volume's object is gone").into());
        };
        let from_address = inner.drivers.agent_address(from).ok_or_else(|| CallError::NoController {
            message: format!("node {from:?} has not said where its agent answers; start the agent there"),
        })?;
        let request = ImportVolumeRequest {
            from: from_address,
            source: Some((**source).clone()),
            target: Some((**target).clone()),
        };
        let mut agent = inner.drivers.agent(to)?;
        // An agent that says nothing for so long does not copy any more.
        let silence = inner.settings.call;
        let opened = timeout(silence, agent.import_volume(request)).await;
        let mut answers = match opened {
            Ok(Ok(answers)) => answers.into_inner(),
            Ok(Err(status)) => return Err(refusal(to, WHAT, &status).into()),
            Err(_) => return Err(silent(to, silence).into()),
        };
        let mut written = Instant::now();
        let mut claim = Arc::clone(&facts.claim);
        let mut proven = false;
        loop {
            let answer = match timeout(silence, answers.message()).await {
                Ok(Ok(Some(answer))) => answer,
                Ok(Ok(None)) if proven => return Ok(claim),
                Ok(Ok(None)) => return Err(uncertain("the agent ended the copy before it was proven").into()),
                Ok(Err(status)) => return Err(refusal(to, WHAT, &status).into()),
                Err(_) => return Err(silent(to, silence).into()),
            };
            self.begun(&facts.operation.id);
            proven |= answer.verified;
            if proven || written.elapsed() >= PROGRESS {
                written = Instant::now();
                claim = self.tell(facts, &claim, &answer).await?;
            }
        }
    }

    /// Writes how far it is. Fails if the operation does not go on.
    async fn tell(
        &self,
        facts: &Facts,
        claim: &Arc<PersistentVolumeClaim>,
        answer: &ImportVolumeResponse,
    ) -> Result<Arc<PersistentVolumeClaim>, Trouble> {
        let inner = &self.manager.inner;
        let Lookup::Is(now) = inner.read::<PersistentVolumeClaim>(&Key::of(&**claim)).await? else {
            return Err(uncertain("the claim is gone").into());
        };
        let goes_on = held(&now).is_some_and(|operation| operation.id == facts.operation.id);
        if !goes_on || now.is_terminating() || now.uid() != facts.claim.uid() {
            return Err(uncertain("the operation does not go on").into());
        }
        let after = operation::progress(&now, &facts.operation.id, answer.done_bytes, answer.total_bytes);
        let Some(mut after) = after else { return Ok(now) };
        match inner.write_claim(&self.leadership, &now, &after).await? {
            TxnOutcome::Committed(revision) => {
                after.meta_mut().resource_version = revision.to_string();
                Ok(Arc::new(after))
            }
            // Somebody else wrote: the next message tells more.
            TxnOutcome::Conflict => Ok(now),
        }
    }
}

fn uncertain(message: &str) -> CallError {
    CallError::Uncertain { message: message.to_owned() }
}

fn silent(node: &str, silence: Duration) -> CallError {
    CallError::Uncertain { message: format!("the agent of node {node:?} said nothing for {silence:?} while copying") }
}
