//! All tests as one program, one subject a file: linking is what takes long.

mod bad_input;
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
mod observability;
<<<<<<< HEAD
mod realisations;
=======
mod multi_user;
mod realisations;
mod restart;
mod run;
mod service;
mod through_containerd;
mod substitution;
