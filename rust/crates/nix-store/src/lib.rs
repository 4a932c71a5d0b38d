//! Store paths, closures, realisation through the nix CLI or an external builder, and GC roots.
