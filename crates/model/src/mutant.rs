//! Planted mistakes, to show that the simulation would find them.
//!
//! Production code asks [`planted`] at one place for each mistake. Without the feature `mutants` the answer is the
//! constant false, and nothing of it is left in the program. With it, `make mutants` plants one after the other. Most of
//! them are real: mistakes of Kubernetes' own controller (by the number of its issue) or of other operators.

macro_rules! mutants {
    ($($(#[doc = $about:literal])+ $name:ident,)*) => {
        /// A mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant {
            $($(#[doc = $about])+ $name,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// What it breaks, in a sentence.
            pub fn about(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($about),+).trim_ascii(),)*
                }
            }
        }
    };
}

mutants! {
    // Guards: what a decision rests on is not compared when it is carried out.
    /// A pod is created without comparing that the lower ones are as they were seen (#41889).
    CreateIgnoresPeers,
    /// No action compares that its set is as it was seen (instaclustr #407).
    IgnoreSet,
    /// An object is created without comparing that its name is free (#59848: two pods of one identity).
    CreateOverwrites,
    /// A pod is deleted without comparing that it is the one that was seen.
    DeleteIgnoresPod,
    /// The status is written without comparing anything: a deleted set comes back (instaclustr #404).
    StatusResurrects,
    /// Writes do not compare the leader's election key.
    NoFence,
    /// A step does not remember what it wrote, and the next one plans on an older view (#59848, KEP-5647).
    ForgetOwnWrites,

    // Order.
    /// A pod that is not Ready counts as ready.
    CountUnreadyAsReady,
    /// A pod that is being deleted counts as available (#82529).
    TerminatingIsAvailable,
    /// minReadySeconds is not waited for (#119234, #123918).
    ForgetMinReady,
    /// Scale-down takes the lowest pod out of range first.
    CondemnLowestFirst,
    /// Scale-down under OrderedReady takes all pods at once.
    CondemnAllAtOnce,
    /// One pod too many starts at a time.
    WindowOffByOne,
    /// A set that is deleted in order loses its lowest pod first.
    TeardownAnyOrder,

    // Updates.
    /// An update goes from the lowest pod up.
    UpdateFromLowest,
    /// maxUnavailable does not count pods that are unavailable already (#112307).
    IgnoreUnavailable,
    /// A pod below the partition comes back updated (#70442, #78209).
    IgnorePartitionOnRecreate,
    /// A paused set goes on updating.
    IgnorePause,
    /// Broken pods of an older template are not replaced (#67250).
    NeverHeal,
    /// Strategy Recreate creates pods while older ones are still there.
    RecreateDoesNotWait,
    /// Disruption budgets are not asked (#58146).
    IgnoreBudgets,
    /// A change of an ordinal's overrides makes no pod outdated.
    IgnoreOverrides,

    // Revisions.
    /// A new revision takes the number of the newest one (#80698).
    ReuseRevisionNumber,
    /// A template that was set back does not make its revision the newest.
    NoRenumbering,
    /// Old revisions are never deleted (#85690: more than 100,000 of them).
    NeverTruncate,
    /// A revision that pods were made from is deleted.
    TruncateLive,

    // Claims.
    /// A pod is created with a claim that is being deleted (#74374).
    UseTerminatingClaim,
    /// The owners of claims are not put right before their pod is scaled away (KEP-1847).
    NoOwnersBeforeRemoval,
    /// A pod in range becomes the owner of its claims, which go when it is replaced (K8SSAND-559).
    OwnersInRange,
    /// A claim that is being deleted goes although a pod uses it.
    ReleaseClaimInUse,

    // Volumes.
    /// A pod is created with a claim whose data is being moved or restored.
    UseHeldClaim,
    /// All claims of a template grow at once.
    GrowAllAtOnce,
    /// Of an ordinal whose volumes are lost, one claim is made anew and the others stay.
    GiveUpOneClaim,
    /// Lost volumes are given up at once, whatever recreateAfterSeconds says.
    GiveUpAtOnce,
    /// A pod is replaced before its claims have grown.
    UpdateBeforeGrowth,
    /// A pod of another revision gets a claim before its data is in a snapshot.
    UpdateWithoutSnapshot,

    // Owners.
    /// An owner is known by its name alone, whatever its uid.
    IgnoreOwnerUid,
    /// What a deleted set leaves behind on purpose is collected.
    CollectOrphans,

    // Status.
    /// The status counts one replica too few (#108837).
    MiscountReplicas,
    /// The status observes a generation that there is not yet.
    ObserveAhead,
    /// The status is written whether or not it differs (#69967: a loop without an end).
    WriteStatusAlways,
    /// An update is complete when its pods are updated, available or not (#136831).
    CompleteTooEarly,
}

#[cfg(feature = "mutants")]
mod switch {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Mutant;

    /// The number of the planted mistake, counted from 1.
    static PLANTED: AtomicUsize = AtomicUsize::new(0);

    /// Plants a mistake, or none, in place of the one before: for the whole process.
    pub fn plant(mutant: Option<Mutant>) {
        PLANTED.store(mutant.map_or(0, |mutant| mutant as usize + 1), Ordering::Relaxed);
    }

    /// Whether a mistake is planted.
    pub fn planted(mutant: Mutant) -> bool {
        PLANTED.load(Ordering::Relaxed) == mutant as usize + 1
    }
}

#[cfg(feature = "mutants")]
pub use switch::{plant, planted};

/// Whether a mistake is planted: never, in a program that people use.
#[cfg(not(feature = "mutants"))]
pub const fn planted(_: Mutant) -> bool {
    false
}
