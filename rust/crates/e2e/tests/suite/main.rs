//! All tests as one program, one subject a file: linking is what takes long.

mod bad_input;
mod build;
mod closures;
mod collector;
mod conformance;
mod contract;
mod crash;
mod cri;
mod doctor;
mod faults;
mod garbage;
mod lifecycle;
mod load;
mod multi_user;
mod observability;
mod order;
mod overlay;
mod push;
mod push_failures;
mod realisations;
mod restart;
mod run;
mod service;
mod substitution;
mod through_containerd;
mod unload;
