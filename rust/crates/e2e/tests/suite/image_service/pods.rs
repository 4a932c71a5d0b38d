//! Pods as kubelet makes them: an image by its store path, a network, a port, logs.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    archive::{archive, image},
    containerd::Config,
    cri::Cri,
    daemon,
    host::{Host, test, unique},
    node::build,
    process::{SETTLE, poll, when},
    store::{Object, Store},
};

use super::Cluster;
use crate::cri::Node;

const PORT: u16 = 6379;
const HOST_PORT: u16 = 30_000;
/// The first of the host's users that those of a pod are.
const USERS: u32 = 100_000;

/// A node whose pods have a network, and are held by a program out of the store.
fn cluster(host: &Host, format: u32) -> Result<Cluster> {
    let busybox = Store::new(host)?.build(
        "pause",
        "$busybox mkdir -p $out/bin; $busybox cp $busybox $out/bin/busybox",
        &[],
    )?;
    let info = Store::new(host)?.closure_info(&[&busybox])?;
    let program = format!("{busybox}/bin/busybox");
    let pause = |image: &str| -> Result<PathBuf> {
        build(host, image, &[&program, "sleep", "1000"], info.path(), &[])
    };
    let config = daemon::Config::new(host, &unique("daemon")).line("upperdir_label = true");
    let configure = |containerd: Config| {
        let containerd = containerd.format(format).with_network();
        // For pods with users of their own.
        containerd
            .capability("remap-ids")
            .capability("only-remap-ids")
    };
    let node = Node::start_from(host, &config, configure, pause)?;
    let images = Cri::connect(config.address())?;
    Ok(Cluster { node, images })
}

/// An archive in the store whose image runs redis.
fn redis(host: &Host) -> Result<Object> {
    let server = format!("{}/bin/redis-server", host.fixture("redis")?);
    let command = [&server, "--protected-mode", "no", "--save", ""];
    archive(host, "redis", &command, &[])
}

/// Asks redis how it is.
fn ping(address: &str) -> Result<()> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    connection.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    connection.read_exact(&mut answer)?;
    ensure!(&answer == b"+PONG\r\n", "{answer:?}");
    Ok(())
}

#[test]
fn a_redis_pod_runs_from_its_store_path_and_answers_on_its_port() {
    test(|host| {
        for format in Config::formats()? {
            let cluster = cluster(host, format)?;
            let archive = redis(host)?;
            let image = image(&archive);
            // In kubelet's order.
            ensure!(cluster.images.image_filesystems()?.len() == 1);
            ensure!(cluster.images.image_id(&image)?.is_none());
            let id = cluster.images.pull(&image)?;
            ensure!(cluster.images.image_id(&image)?.as_ref() == Some(&id));
            let logs = host.dir().join(unique("logs"));
            fs::create_dir(&logs)?;
            let pod = cluster.node.cri.run_pod_with_port(&logs, HOST_PORT, PORT)?;
            let container = pod.create_container(&id, &[], &[])?;
            pod.start_container(&container)?;

            let address = format!("{}:{PORT}", pod.ip()?);
            poll("redis", SETTLE, || Ok(when(ping(&address).is_ok())))?;
            ping(&format!("127.0.0.1:{HOST_PORT}")).context("through the port of the host")?;
            let cli = format!("{}/bin/redis-cli", host.fixture("redis")?);
            ensure!(pod.exec(&container, &[&cli, "ping"])? == "PONG\n");
            // What redis says is copied there meanwhile.
            let log = || -> Result<String> {
                let files = fs::read_dir(&logs)?;
                let texts = files.map(|file| Ok(fs::read_to_string(file?.path())?));
                texts.collect()
            };
            poll("the log", SETTLE, || {
                Ok(when(log()?.contains("Ready to accept connections")))
            })
            .with_context(|| format!("{:?}", log()))?;

            pod.remove_container(&container)?;
            pod.remove()?;
            ensure!(ping(&format!("127.0.0.1:{HOST_PORT}")).is_err());
            // Image garbage collection.
            cluster.images.remove_image(&id)?;
            ensure!(cluster.images.image_id(&image)?.is_none());
            cluster.keeps_nothing()?;
        }
        Ok(())
    });
}

#[test]
fn a_pod_with_users_of_its_own_runs_from_the_store() {
    test(|host| {
        let reason = "containerd maps the ids of mounts since 2.0";
        host.requires(Config::formats()?.contains(&3), reason)?;
        for format in Config::formats()? {
            let cluster = cluster(host, format)?;
            let id = cluster.images.pull(&image(&redis(host)?))?;
            let pod = cluster.node.cri.run_pod_with_users_from(USERS)?;
            let container = pod.create_container(&id, &[], &[])?;
            pod.start_container(&container)?;
            let address = format!("{}:{PORT}", pod.ip()?);
            poll("redis", SETTLE, || Ok(when(ping(&address).is_ok())))?;
            let cli = format!("{}/bin/redis-cli", host.fixture("redis")?);
            ensure!(pod.exec(&container, &[&cli, "ping"])? == "PONG\n");
            // Root there, and nobody of importance here.
            ensure!(owners("redis-server")? == [USERS]);
            pod.remove_container(&container)?;
            pod.remove()?;
        }
        Ok(())
    });
}

/// Whose the processes with this name are, on the host.
fn owners(name: &str) -> Result<Vec<u32>> {
    let mut owners = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        // Others end while they are looked at, and not every entry is a process.
        let is_it = |comm: String| comm.trim_end() == name;
        if fs::read_to_string(process.join("comm")).is_ok_and(is_it) {
            owners.push(fs::metadata(&process)?.uid());
        }
    }
    Ok(owners)
}
