//! The canary: a set whose pods write numbered, checksummed, fsynced records, and somebody who remembers every record that
//! was acknowledged.
//!
//! [`record`] is what the pods write (the image's program compiles the same file), [`ledger`] knows what must be on a
//! volume and says what is wrong with what is there, [`line`](mod@line) talks to a pod, [`writer`] never stops writing, and
//! [`story`] does to the set what people and machines do.

#[path = "../../deploy/images/canary/record.rs"]
pub mod record;

pub mod ledger;
pub mod line;
pub mod set;
pub mod story;
pub mod writer;

/// The image of the canary.
pub const IMAGE: &str = "berth.local/canary:1";
/// The same program under another name, to roll a set to.
pub const OTHER_IMAGE: &str = "berth.local/canary:2";
/// Where it serves.
pub const PORT: u16 = 7000;
