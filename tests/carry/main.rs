//! `Carry`: a stream joined to a socket, with the in-process guest.

#[path = "../common/mod.rs"]
mod common;

mod ends;
mod failures;
mod flow;
mod last;
mod scripted;
