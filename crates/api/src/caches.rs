//! One window for each kind of object, and one for the nodes' leases.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use pb::{Kind, Object, api::v1::Object as AnyObject};
use runtime::{Tasks, feed::feed};
use store::{
    Guard, Key, Kv, LeaseId, Prefix, Revision, Store, Txn, TxnOutcome,
    objects::{Undecodable, decode_any},
};
use tokio::{sync::Mutex, time::timeout};

use crate::{
    error::{Error, Result},
    feed::{Decode, WindowSink},
    window::{Window, starting_with},
};

/// How long a read waits for the cache to show this process' own last write.
const READ_OWN_WRITE: Duration = Duration::from_secs(3);

/// A stored object.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Where.
    pub key: Key,
    /// The object, with its resourceVersion.
    pub object: AnyObject,
    /// When an object of this name came to be.
    pub create_revision: Revision,
    /// When it was last written.
    pub mod_revision: Revision,
}

/// The window of one kind.
pub type KindWindow = Window<Key, Stored>;

/// All windows.
pub struct Caches {
    kinds: BTreeMap<Kind, Arc<KindWindow>>,
    leases: Arc<Window<Key, LeaseId>>,
    /// When the store last confirmed that the pods are shown as they are.
    pods_confirmed: Mutex<Option<Instant>>,
}

impl Stored {
    /// The object in a value.
    pub fn decode(kind: Kind, kv: &Kv) -> std::result::Result<Self, Undecodable> {
        Ok(Self {
            key: kv.key.clone(),
            object: decode_any(kind, kv)?,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
        })
    }

    /// The object, if it is of this kind.
    pub fn typed<T: Object>(&self) -> Option<&T> {
        T::peek(&self.object)
    }
}

/// The decoder of a kind. A plain function for each kind, so that a feed needs no state.
fn decoder(kind: Kind) -> Decode<Stored> {
    macro_rules! each {
        ($($kind:ident),*) => { match kind { $(Kind::$kind => |kv| Stored::decode(Kind::$kind, kv),)* } };
    }
    each!(
        StatefulSet,
        ControllerRevision,
        Pod,
        Service,
        PersistentVolumeClaim,
        PersistentVolume,
        StorageClass,
        ConfigMap,
        Secret,
        Node,
        Namespace,
        Event,
        PodDisruptionBudget,
        VolumeAttachment,
        CsiDriver,
        VolumeSnapshot,
        PriorityClass
    )
}

fn lease(kv: &Kv) -> std::result::Result<LeaseId, Undecodable> {
    kv.lease.ok_or_else(|| Undecodable {
        key: kv.key.clone(),
        revision: kv.mod_revision,
        kind: Kind::Node,
        reason: "the key of a node's lease hangs on no lease".to_owned(),
    })
}

impl Caches {
    /// Starts to follow the store.
    pub fn start(store: &Arc<dyn Store>, tasks: &Tasks) -> Self {
        let kinds = Kind::ALL.map(|kind| {
            let window = Arc::new(KindWindow::default());
            let sink = WindowSink { window: Arc::clone(&window), decode: decoder(kind) };
            tasks.spawn("feed", feed(store.clone(), Prefix::kind(kind), sink));
            (kind, window)
        });
        let leases = Arc::new(Window::default());
        let sink = WindowSink { window: Arc::clone(&leases), decode: lease };
        tasks.spawn("feed", feed(store.clone(), Prefix::node_leases(), sink));
        Self { kinds: kinds.into_iter().collect(), leases, pods_confirmed: Mutex::default() }
    }

    /// Waits until all windows show the store.
    pub async fn synced(&self) {
        for window in self.kinds.values() {
            window.synced().await;
        }
        self.leases.synced().await;
    }

    /// The window of a kind.
    pub fn of(&self, kind: Kind) -> &Arc<KindWindow> {
        &self.kinds[&kind]
    }

    /// The window of a kind, once it shows all that this process wrote.
    pub async fn current(&self, kind: Kind) -> Result<&Arc<KindWindow>> {
        let window = self.of(kind);
        window.caught_up(READ_OWN_WRITE).await?;
        Ok(window)
    }

    /// The window of pods, once the store has said that none is newer than what is shown. Deletions may still be on
    /// their way. Callers that come at the same time share one question.
    pub async fn confirmed_pods(&self, store: &dyn Store) -> Result<&Arc<KindWindow>> {
        let arrived = Instant::now();
        let window = self.of(Kind::Pod);
        let mut confirmed = self.pods_confirmed.lock().await;
        if confirmed.is_some_and(|at| at >= arrived) {
            return Ok(window);
        }
        let asking = async {
            loop {
                let (asked, shown) = (Instant::now(), window.revision());
                let guards = vec![Guard::PrefixNotNewer(Prefix::kind(Kind::Pod), shown)];
                match store.txn(Txn { guards, ops: Vec::new() }).await? {
                    TxnOutcome::Committed(_) => return Ok::<_, Error>(asked),
                    TxnOutcome::Conflict => window.reached(shown + 1).await,
                }
            }
        };
        let asked = timeout(READ_OWN_WRITE, asking).await.map_err(|_| {
            Error::Unavailable(
                "the pods change faster than this service can follow, or the store is slow; retry".into(),
            )
        })??;
        *confirmed = Some(asked);
        Ok(window)
    }

    /// The nodes' leases.
    pub fn leases(&self) -> &Arc<Window<Key, LeaseId>> {
        &self.leases
    }

    /// One object, if there is one of that name.
    pub async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Arc<Stored>>> {
        Ok(self.current(kind).await?.get(&Key::object(kind, namespace, name))?)
    }

    /// All objects of a kind in a namespace (all when empty), and the revision that they show.
    pub async fn list(&self, kind: Kind, namespace: &str) -> Result<(Vec<Arc<Stored>>, Revision)> {
        Ok(self.current(kind).await?.range(starting_with(&Prefix::namespace(kind, namespace)))?)
    }

    /// One object of a type.
    pub async fn get_typed<T: Object>(&self, namespace: &str, name: &str) -> Result<T> {
        let stored = self.get(T::KIND, namespace, name).await?;
        let found = stored.as_deref().and_then(Stored::typed::<T>).cloned();
        found.ok_or_else(|| Error::not_found(T::KIND, namespace, name))
    }
}
