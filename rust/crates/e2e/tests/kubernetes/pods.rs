//! Pods whose images Nix provides, as kubelet runs them.

use std::{
    net::{Ipv4Addr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    archive::image,
    host::test,
    process::{SETTLE, poll, succeed, when},
    store::{self, Object},
};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, GATEWAY, REDIS, hello_archive, redis_answers, redis_archive},
    kubelet::{Kubelet, PATIENCE, Running},
};

/// The port of the machine that leads to redis.
const HOST_PORT: u16 = 30079;

/// Redis answers on the pod's own address and on the machine's.
fn answers(pod: &Running) -> Result<()> {
    redis_answers(pod.ip, REDIS)?;
    for address in [GATEWAY, Ipv4Addr::LOCALHOST] {
        redis_answers(address, HOST_PORT)?;
    }
    Ok(())
}

fn redis(image: &str) -> Value {
    json!({
        "name": "redis",
        "image": image,
        "ports": [{ "containerPort": REDIS, "hostPort": HOST_PORT }],
        "readinessProbe": { "tcpSocket": { "port": REDIS }, "periodSeconds": 1 },
    })
}

#[test]
fn a_pod_answers_on_its_address_and_on_the_port_of_the_host() {
    test(|host| {
        let cluster = Cluster::start(host)?;
        let archive = redis_archive(host)?;
        cluster.kubelet.add_pod("redis", &redis(&image(&archive)))?;
        let pod = cluster.kubelet.running("redis")?;
        answers(&pod)
    });
}

#[test]
fn a_pod_survives_restarts_of_the_daemon_of_containerd_and_of_kubelet() {
    test(|host| {
        let mut cluster = Cluster::start(host)?;
        let archive = redis_archive(host)?;
        cluster.kubelet.add_pod("redis", &redis(&image(&archive)))?;
        let pod = cluster.kubelet.running("redis")?;
        // Nothing but the daemon holds the image and what it runs.
        archive.release()?;
        for restart in ["the daemon", "containerd", "kubelet", "all"] {
            if restart != "containerd" && restart != "kubelet" {
                cluster.daemon.stop()?;
                answers(&pod).context("without the daemon")?;
                cluster.daemon.start_again()?;
            }
            if restart != "the daemon" && restart != "kubelet" {
                cluster.containerd.restart()?;
            }
            if restart != "the daemon" && restart != "containerd" {
                cluster.kubelet.restart()?;
            }
            cluster.settles()?;
            store::collect_garbage()?;
            let now = cluster.kubelet.running("redis")?;
            ensure!(now == pod, "{restart}: {now:?} instead of {pod:?}");
            answers(&now).context(restart)?;
        }
        ensure!(archive.exists(), "the archive was collected");
        // Kubelet looks at each pod every second, and might replace what it does not know again.
        thread::sleep(Duration::from_secs(3));
        let now = cluster.kubelet.running("redis")?;
        ensure!(now == pod, "{now:?} instead of {pod:?}");
        answers(&now)
    });
}

/// Takes the pod away and waits until kubelet and containerd have forgotten it.
fn end(cluster: &Cluster, pod: &Running) -> Result<()> {
    cluster.kubelet.remove_pod("redis")?;
    poll("the end of the pod", PATIENCE, || {
        let running = cluster.crictl_json("ps", &[])?;
        let is_known = cluster.kubelet.status("redis")?.is_some();
        Ok(when(!is_known && running["containers"] == json!([])))
    })?;
    ensure!(redis_answers_not(pod), "redis answers still");
    Ok(())
}

fn redis_answers_not(pod: &Running) -> bool {
    let address = (pod.ip, REDIS).into();
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err()
}

/// Has kubelet remove whatever image is not in use: no disk is large enough. Its collection by
/// thresholds would come too late, every five minutes.
fn collect_images(kubelet: &mut Kubelet) -> Result<()> {
    kubelet.reconfigure(&json!({
        "evictionSoft": { "imagefs.available": "1Ei" },
        "evictionSoftGracePeriod": { "imagefs.available": "1s" },
    }))
}

#[test]
fn what_a_pod_needed_is_freed_by_kubelets_collection_of_images() {
    test(|host| {
        let mut cluster = Cluster::start(host)?;
        let archive = redis_archive(host)?;
        cluster.kubelet.add_pod("redis", &redis(&image(&archive)))?;
        let pod = cluster.kubelet.running("redis")?;
        archive.release()?;
        end(&cluster, &pod)?;
        store::collect_garbage()?;
        ensure!(
            archive.exists(),
            "the archive was collected before its image"
        );
        collect_images(&mut cluster.kubelet)?;
        cluster.keeps_nothing()?;
        store::collect_garbage()?;
        ensure!(!archive.exists(), "the archive is held still");
        let images = cluster.crictl_json("images", &[])?;
        let left = images["images"].as_array().context("no images")?;
        ensure!(left.len() == 1 && left[0]["pinned"] == true, "{images}");
        Ok(())
    });
}

/// Whether kubelet has to leave the image of an archive alone.
fn is_pinned(cluster: &Cluster, archive: &Object) -> Result<bool> {
    let inspected = cluster.crictl_json("inspecti", &[&image(archive)])?;
    Ok(inspected["status"]["pinned"] == true)
}

/// Whether the daemon holds an archive.
fn is_held(cluster: &Cluster, archive: &Object) -> bool {
    let name = archive.path().trim_start_matches("/nix/store/");
    cluster.held().contains(name)
}

#[test]
fn what_is_pinned_is_left_out_of_kubelets_collection_of_images() {
    test(|host| {
        let mut cluster = Cluster::start(host)?;
        let (pinned, other) = (hello_archive(host)?, hello_archive(host)?);
        for archive in [&pinned, &other] {
            succeed(&mut cluster.crictl(&["pull", &image(archive)]))?;
        }
        let name = format!("{}:latest", image(&pinned));
        let label = |value: &str| {
            let label = format!("io.cri-containerd.pinned={value}");
            let label = ["images", "label", &name, &label];
            succeed(&mut cluster.containerd.ctr(&label))
        };
        label("pinned")?;
        poll("the pin", SETTLE, || {
            Ok(when(is_pinned(&cluster, &pinned)?))
        })?;
        ensure!(!is_pinned(&cluster, &other)?);
        collect_images(&mut cluster.kubelet)?;
        // Twice, so that kubelet has been through all of them.
        for _ in 0..2 {
            poll("the removal of the other image", PATIENCE, || {
                Ok(when(!is_held(&cluster, &other)))
            })?;
            ensure!(is_held(&cluster, &pinned), "{:?}", cluster.held());
            ensure!(is_pinned(&cluster, &pinned)?);
            succeed(&mut cluster.crictl(&["pull", &image(&other)]))?;
        }
        label("")?;
        cluster.keeps_nothing()
    });
}
