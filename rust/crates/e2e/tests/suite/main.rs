//! All tests as one program, one subject a file: linking is what takes long.

mod bad_input;
mod closures;
mod conformance;
mod contract;
mod crash;
mod faults;
mod cri;
mod garbage;
mod lifecycle;
mod load;
mod realisations;
mod restart;
mod run;
mod service;
