//! Real applications, from the manifests of `examples/`: what the end-to-end tests know of each, and the story that each
//! goes through.
//!
//! An [`Application`] is data alone: which example it is, and how its own client writes and reads. Everything that is
//! done with it is the same for all: [`story`] tells it, [`writer`] writes all the while, [`ledger`] knows what must be
//! there at the end.

pub mod etcd;
pub mod ledger;
pub mod loss;
pub mod mariadb;
pub mod postgres;
pub mod redis;
pub mod stage;
pub mod story;
pub mod writer;
pub mod zookeeper;

/// An example and its client.
#[derive(Clone, Copy, Debug)]
pub struct Application {
    /// The folder below `examples/`.
    pub name: &'static str,
    /// Examples that must be there before it.
    pub needs: &'static [&'static str],
    /// Archives of images that the nodes need, without `.tar`.
    pub images: &'static [&'static str],
    /// Its StatefulSet.
    pub set: &'static str,
    /// Members of it.
    pub members: usize,
    /// Labels of everything that the example makes, as a selector; claims are found by it.
    pub selector: &'static str,
    /// Manifest of the pod that the client runs in: its image. It has a shell.
    pub client_image: &'static str,
    /// How the client works.
    pub commands: Commands,
    /// Whether every member holds everything; otherwise each holds its own part.
    pub replicated: bool,
}

/// Shell scripts that run in the client's pod.
#[derive(Clone, Copy, Debug)]
pub struct Commands {
    /// Runs once, before the first write, until it succeeds.
    pub prepare: &'static str,
    /// Writes the numbers from `$1` to `$2`, one after the other, and prints each on a line of its own as soon as the
    /// application has acknowledged it. Ends at the first that fails.
    pub write: &'static str,
    /// Prints every number that the application holds, on lines of their own; fails unless the answer is up to date.
    pub read: &'static str,
    /// Prints the numbers that member `$1` (an ordinal) holds itself.
    pub read_member: &'static str,
}

/// All of them.
pub const ALL: [Application; 5] =
    [etcd::ETCD, zookeeper::ZOOKEEPER, redis::REDIS, mariadb::MARIADB, postgres::POSTGRES];
