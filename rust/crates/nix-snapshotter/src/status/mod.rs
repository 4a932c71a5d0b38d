//! How a running daemon is: the service that says so, and the command that asks.

mod command;
mod service;

pub(crate) use self::{command::show, service::StatusService};
