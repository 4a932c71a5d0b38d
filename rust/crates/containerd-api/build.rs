//! Generates the server side of the services in `proto/`, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let protos = protox::compile(["containerd/services/snapshots/snapshots.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_client(false)
        // Sorted labels: what is derived from them does not depend on hashing.
        .btree_map(".")
        .compile_fds(protos)?;
    Ok(())
}
