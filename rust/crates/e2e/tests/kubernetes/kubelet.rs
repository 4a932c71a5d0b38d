//! A kubelet without an API server: its pods are files in a directory.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    host::{Host, unique},
    process::{Process, poll, when},
};
use serde_json::{Value, json};

use crate::cluster::tool;

/// How long kubelet may take to do what follows from a change.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// What kubelet appends to the names of pods.
const NODE: &str = "node";

/// Where it tells about its pods, to everybody.
const READ_ONLY_PORT: u16 = 10255;

/// Kubelet sets these as it wants them. They are the whole machine's and not the sandbox's, so that
/// it is given copies.
const ITS_OWN: &str = r#"
set -e
for name in kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes \
    vm/overcommit_memory vm/panic_on_oom; do
    mkdir -p "$1/${name%/*}"
    cat "/proc/sys/$name" >"$1/$name"
    mount --bind "$1/$name" "/proc/sys/$name"
done
shift
exec "$@"
"#;

/// A running kubelet.
pub(crate) struct Kubelet {
    // `None` while it is stopped.
    process: Option<Process>,
    program: PathBuf,
    dir: PathBuf,
    config: Value,
}

impl Kubelet {
    /// Starts it with the sockets of containerd and of the image service.
    pub(crate) fn start(host: &Host, runtime: &Path, images: &Path) -> Result<Self> {
        let dir = host.dir().join(unique("kubelet"));
        let manifests = dir.join("manifests");
        fs::create_dir_all(&manifests)?;
        let resolver = dir.join("resolv.conf");
        fs::write(&resolver, "nameserver 127.0.0.1\n")?;
        let endpoint = |socket: &Path| format!("unix://{}", socket.display());
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": "127.0.0.1",
            "readOnlyPort": READ_ONLY_PORT,
            "healthzPort": 0,
            "authentication": {
                "anonymous": { "enabled": true },
                "webhook": { "enabled": false },
            },
            "authorization": { "mode": "AlwaysAllow" },
            "staticPodPath": manifests,
            "podLogsDir": dir.join("logs"),
            "resolvConf": resolver,
            "containerRuntimeEndpoint": endpoint(runtime),
            "imageServiceEndpoint": endpoint(images),
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": false,
            "failSwapOn": false,
            // Nothing is evicted before a test wants it.
            "evictionHard": { "memory.available": "1Mi" },
            "evictionPressureTransitionPeriod": "1s",
            "fileCheckFrequency": "1s",
            "syncFrequency": "1s",
            "imageMinimumGCAge": "1ms",
        });
        let mut kubelet = Self {
            process: None,
            program: tool(host, "KUBELET_BIN")?,
            dir,
            config,
        };
        kubelet.spawn()?;
        Ok(kubelet)
    }

    fn spawn(&mut self) -> Result<()> {
        let config = self.dir.join("config.json");
        fs::write(&config, self.config.to_string())?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", ITS_OWN, "kubelet"]);
        command.arg(self.dir.join("sysctl"));
        command.arg(&self.program);
        command.arg("--config").arg(config);
        command.arg("--root-dir").arg(self.dir.join("root"));
        command.arg("--cert-dir").arg(self.dir.join("certificates"));
        command.args(["--hostname-override", NODE]);
        let mut process = Process::spawn("kubelet", &mut command, &self.dir.join("log"))?;
        poll("kubelet", PATIENCE, || {
            if let Some(status) = process.ended()? {
                bail!("kubelet ended with {status}");
            }
            Ok(when(get("/healthz").is_ok_and(|answer| answer == "ok")))
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it, and starts it again with what it has on the disk.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.stop();
        self.spawn()
    }

    /// Ends it; containers go on.
    pub(crate) fn stop(&mut self) {
        self.process = None;
    }

    /// Starts it again with more in its configuration.
    pub(crate) fn reconfigure(&mut self, settings: &Value) -> Result<()> {
        for (key, value) in settings.as_object().into_iter().flatten() {
            self.config[key] = value.clone();
        }
        self.restart()
    }

    /// Everything it has logged.
    pub(crate) fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    fn manifest(&self, pod: &str) -> PathBuf {
        self.dir.join("manifests").join(format!("{pod}.json"))
    }

    /// Adds a pod of one container.
    pub(crate) fn add_pod(&self, pod: &str, container: &Value) -> Result<()> {
        let manifest = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": pod, "namespace": "default" },
            "spec": {
                "terminationGracePeriodSeconds": 5,
                "containers": [container],
            },
        });
        // Kubelet overlooks names with a dot before them, and so never reads half a file.
        let temporary = self.dir.join("manifests").join(format!(".{pod}"));
        fs::write(&temporary, manifest.to_string())?;
        Ok(fs::rename(temporary, self.manifest(pod))?)
    }

    /// Takes a pod's file away.
    pub(crate) fn remove_pod(&self, pod: &str) -> Result<()> {
        Ok(fs::remove_file(self.manifest(pod))?)
    }

    /// The status of a pod, if kubelet has such a pod.
    pub(crate) fn status(&self, pod: &str) -> Result<Option<Value>> {
        let pods: Value = serde_json::from_str(&get("/pods")?)?;
        let name = format!("{pod}-{NODE}");
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        let pod = pods.into_iter().find(|pod| pod["metadata"]["name"] == name);
        Ok(pod.map(|mut pod| pod["status"].take()))
    }

    /// Waits until a pod's container waits for one of these reasons, and gives the message.
    pub(crate) fn waiting(&self, pod: &str, reasons: &[&str]) -> Result<String> {
        let mut last = None;
        poll(&format!("{reasons:?} of the pod {pod}"), PATIENCE, || {
            last = self.status(pod)?;
            let status = last.as_ref();
            let waiting = status.map(|status| &status["containerStatuses"][0]["state"]["waiting"]);
            let waiting = waiting.filter(|waiting| {
                let reason = waiting["reason"].as_str().unwrap_or_default();
                reasons.contains(&reason)
            });
            Ok(waiting.map(|waiting| waiting["message"].as_str().unwrap_or_default().to_owned()))
        })
        .with_context(|| format!("{last:#?}"))
    }

    /// Waits until a pod and its container run, and tells of them.
    pub(crate) fn running(&self, pod: &str) -> Result<Running> {
        let mut last = None;
        poll(&format!("the pod {pod}"), PATIENCE, || {
            last = self.status(pod).ok().flatten();
            Ok(last.as_ref().and_then(Running::of))
        })
        .with_context(|| format!("{last:#?}"))
    }
}

/// A pod that runs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Running {
    /// Its address.
    pub(crate) ip: Ipv4Addr,
    /// The identifier of its container.
    pub(crate) container: String,
    /// The identifier of the image of that.
    pub(crate) image: String,
    restarts: u64,
}

impl Running {
    fn of(status: &Value) -> Option<Self> {
        let container = &status["containerStatuses"][0];
        let runs = status["phase"] == "Running" && container["state"]["running"].is_object();
        let id = container["containerID"].as_str()?;
        runs.then_some(())?;
        Some(Self {
            ip: status["podIP"].as_str()?.parse().ok()?,
            container: id.trim_start_matches("containerd://").to_owned(),
            image: container["imageID"].as_str()?.to_owned(),
            restarts: container["restartCount"].as_u64()?,
        })
    }
}

/// Asks kubelet, in HTTP of a version that has no chunks.
fn get(path: &str) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, READ_ONLY_PORT))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "{path}: {status}: {body}");
    Ok(body.to_owned())
}
