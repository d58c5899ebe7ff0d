//! A controller of which each step is asked for: what it sees can grow old before it acts.

use std::sync::Arc;

use controller::{
    caches::Caches,
    host::SystemHost,
    observed::{Observed, SetKey},
    step::{self, StatusPolicy, Surroundings},
    write::Fault,
};
use plan::statefulset::Plan;
use runtime::tasks::Tasks;
use store::Store;
use tokio_util::sync::CancellationToken;

use super::{Imaginary, NAMESPACE, OneNode};

pub struct Steps {
    pub around: Surroundings,
    pub caches: Caches,
    _tasks: Tasks,
}

impl Steps {
    pub async fn over(store: Arc<dyn Store>) -> Self {
        let tasks = Tasks::new(&CancellationToken::new());
        let caches = Caches::start(&store, &tasks);
        caches.synced().await;
        let (placer, volumes, host) = (Arc::new(OneNode::default()), Arc::new(Imaginary), Arc::new(SystemHost));
        Self {
            around: Surroundings {
                store,
                placer,
                volumes,
                priorities: Default::default(),
                host,
                fence: None,
                tried: Default::default(),
            },
            caches,
            _tasks: tasks,
        }
    }

    pub fn see(&self, name: &str) -> (Observed, Plan) {
        let key = SetKey { namespace: NAMESPACE.into(), name: name.into() };
        let observed = self.caches.observe(&key).unwrap().unwrap();
        let plan = step::plan(&observed, &SystemHost);
        (observed, plan)
    }

    pub async fn act(&self, (observed, plan): &(Observed, Plan)) -> Option<Fault> {
        let done = step::act(observed, plan, StatusPolicy::Now, &self.around).await;
        self.caches.show(&done.wrote).await;
        done.fault
    }
}
