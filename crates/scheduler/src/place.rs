//! Place: from memory, in as many steps as there are nodes.

use std::time::Duration;

use pb::{
    Kind,
    scheduler::v1::{
        PlaceRequest, PlaceResponse, Placement, Unschedulable, place_response::Result as Answer,
        scheduler_service_server::SchedulerService,
    },
};
use plan::schedule::{Placed, Request as PlanRequest};
use store::{Guard, Key, objects::guard_to_pb};
use tonic::{Request, Response, Status};

use crate::{Inner, Scheduler};

/// How long a question waits for this process to lead: an election after a restart takes less.
const ELECTION: Duration = Duration::from_secs(2);

impl Inner {
    /// The leader's fence; waits a moment for it.
    async fn fence(&self) -> Result<Guard, Status> {
        let mut fence = self.fence.subscribe();
        let leading = tokio::time::timeout(ELECTION, fence.wait_for(Option::is_some)).await;
        let guard = match leading {
            Ok(Ok(guard)) => guard.clone(),
            Ok(Err(_)) | Err(_) => None,
        };
        guard.ok_or_else(|| {
            Status::unavailable(format!(
                "this scheduler does not lead (for {ELECTION:?}); ask again, or ask the one that holds {}",
                Key::leader("scheduler")
            ))
        })
    }
}

/// What a placement rests on: the node is as it was, and who gave it still leads.
pub(crate) fn guards(placed: &Placed, fence: &Guard) -> [Guard; 2] {
    [fence.clone(), Guard::ModRevision(Key::object(Kind::Node, "", &placed.node), placed.node_revision)]
}

#[tonic::async_trait]
impl SchedulerService for Scheduler {
    async fn place(&self, request: Request<PlaceRequest>) -> Result<Response<PlaceResponse>, Status> {
        let PlaceRequest { pod, reachable, volume_drivers } = request.into_inner();
        let Some(pod) = pod.filter(|pod| pod.metadata.as_ref().is_some_and(|meta| !meta.name.is_empty())) else {
            return Err(Status::invalid_argument(
                "pod.metadata.name is empty; the reservation is made under that name",
            ));
        };
        let fence = self.inner.fence().await?;
        let request = PlanRequest::of(&pod, reachable).with_drivers(&pod, &volume_drivers);
        let answer = match self.inner.choose(&request) {
            Ok(placed) => {
                let guards = guards(&placed, &fence).iter().map(guard_to_pb).collect();
                Answer::Placement(Placement { node_name: placed.node, guards })
            }
            Err(why) => Answer::Unschedulable(Unschedulable { message: why.to_string() }),
        };
        Ok(Response::new(PlaceResponse { result: Some(answer) }))
    }
}
