//! What the controller needs from the world besides the store: the time and fresh identities. The simulator has its own.

use jiff::Timestamp;
use pb::objects::Time;

use crate::object::Birth;

/// Time and identities.
pub trait Host: Send + Sync + 'static {
    /// The time of day. Written into objects and compared with what others wrote; no order is decided from it.
    fn now(&self) -> Timestamp;

    /// An identity that nothing else has or ever had.
    fn uid(&self) -> String;

    /// The identity and the time of an object that is made now.
    fn birth(&self) -> Birth {
        Birth { uid: self.uid(), at: Time::from(self.now()) }
    }
}

/// The machine's clock and random identities.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemHost;

impl Host for SystemHost {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn uid(&self) -> String {
        uuid::Uuid::new_v4().to_string()
    }
}
