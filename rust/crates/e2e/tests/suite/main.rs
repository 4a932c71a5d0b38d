//! All tests as one program, one subject a file: linking is what takes long.

mod bad_input;
mod closures;
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
>>>>>>> bfc6c36 (Tests: pulls from a binary cache with faults, and through nix-daemon)
mod restart;
mod run;
mod service;
mod through_containerd;
mod substitution;
