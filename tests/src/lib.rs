//! End-to-end tests of Berth.
