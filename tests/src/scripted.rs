//! A CSI driver that does what a script says: it answers too late, fails after it is done, dies in the middle, or never
//! answers.
//!
//! Volumes are folders below one folder that the drivers of all nodes have, as a file server's would be. All that a driver
//! knows is there, so that it may be killed at any moment. [`service`] is the driver, [`run`] starts one for every node of a
//! lab, [`script`] says what goes wrong and when.

pub mod run;
pub mod script;
pub mod service;
pub mod state;
