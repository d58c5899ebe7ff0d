//! The driver's three services: what is asked becomes work on a disk, and what comes of it an answer.

mod controller;
mod identity;
mod node;
