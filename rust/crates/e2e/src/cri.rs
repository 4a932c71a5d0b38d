//! A client of the CRI, as kubelet is one: images, and pods on the network of the host.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use http::uri::PathAndQuery;
use tonic::{Request, Status, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use crate::{
    host::unique,
    process::{SETTLE, poll, when},
    runtime,
};

use cri_api::v1::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, FilesystemUsage, IdMapping, ImageFsInfoRequest,
    ImageSpec, ImageStatusRequest, LinuxContainerConfig, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, ListImagesRequest, ListImagesResponse,
    Mount, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    PodSandboxStatusRequest, PortMapping, Protocol, PullImageRequest, RemoveContainerRequest,
    RemoveImageRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest, UserNamespace,
    image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};

/// How long the CRI may take to look at all images after containerd has begun to listen.
const START_BOUND: Duration = Duration::from_secs(60);

/// A pull that is under way.
#[derive(Debug)]
pub struct Pulling(tokio::task::JoinHandle<Result<String, Status>>);

impl Pulling {
    /// Waits for what names the image from then on.
    ///
    /// # Errors
    /// The status of PullImage; there is no answer within `patience`.
    pub fn answer(self, patience: Duration) -> Result<String> {
        let answer = runtime::wait(async { tokio::time::timeout(patience, self.0).await });
        Ok(answer.context("a pull that does not end")???)
    }

    /// Goes away.
    ///
    /// # Errors
    /// There was an answer before.
    pub fn abandon(self) -> Result<()> {
        self.0.abort();
        // Ended for certain, and its stream with it.
        match runtime::wait(self.0) {
            Ok(answer) => bail!("the pull had ended: {answer:?}"),
            Err(_) => Ok(()),
        }
    }
}

/// A connection to the CRI of one containerd. It outlives a restart of that.
#[derive(Clone, Debug)]
pub struct Cri {
    channel: Channel,
}

impl Cri {
    /// Connects, and waits until the CRI answers: until then it is "not initialized yet".
    ///
    /// # Errors
    /// It does not within a minute.
    pub fn connect(socket: &Path) -> Result<Self> {
        let channel = runtime::connect(socket)?;
        let cri = Self { channel };
        cri.wait()?;
        Ok(cri)
    }

    /// Waits until the CRI answers, after a restart of containerd.
    ///
    /// # Errors
    /// It does not within a minute.
    pub fn wait(&self) -> Result<()> {
        poll("the CRI", START_BOUND, || Ok(when(self.images().is_ok())))
    }

    fn image_service(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }

    fn runtime_service(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
    }

    /// The names of all images that the CRI lists.
    ///
    /// # Errors
    /// What it says.
    pub fn images(&self) -> Result<Vec<String>> {
        let request = ListImagesRequest {};
        let answer = runtime::wait(self.image_service().list_images(request))?;
        let images = answer.into_inner().images.into_iter();
        let mut names: Vec<_> = images.flat_map(|image| image.repo_tags).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The identifier of an image, if the CRI knows it by this name.
    ///
    /// # Errors
    /// What it says; an image without the size that kubelet insists on.
    pub fn image_id(&self, image: &str) -> Result<Option<String>> {
        let request = ImageStatusRequest { image: spec(image) };
        let answer = runtime::wait(self.image_service().image_status(request))?;
        let Some(found) = answer.into_inner().image else {
            return Ok(None);
        };
        ensure!(found.size > 0 && !found.id.is_empty(), "{found:?}");
        Ok(Some(found.id))
    }

    /// The bytes that an image has for kubelet: when it asks for the one, and when it asks for all.
    ///
    /// # Errors
    /// What the CRI says; it does not know the image.
    pub fn image_sizes(&self, image: &str) -> Result<[u64; 2]> {
        let request = ImageStatusRequest { image: spec(image) };
        let answer = runtime::wait(self.image_service().image_status(request))?;
        let one = answer.into_inner().image.context("no such image")?;
        let answer = runtime::wait(self.image_service().list_images(ListImagesRequest {}))?;
        let mut all = answer.into_inner().images.into_iter();
        let same = all.find(|same| same.id == one.id);
        Ok([one.size, same.context("it is not listed")?.size])
    }

    /// Pulls an image and gives what names it from then on.
    ///
    /// # Errors
    /// The status of PullImage.
    pub fn pull(&self, image: &str) -> Result<String, Status> {
        let request = PullImageRequest { image: spec(image) };
        let answer = runtime::wait(self.image_service().pull_image(request))?;
        Ok(answer.into_inner().image_ref)
    }

    /// Begins to pull an image, for tests that do something meanwhile.
    #[must_use]
    pub fn begin_pull(&self, image: &str) -> Pulling {
        let request = PullImageRequest { image: spec(image) };
        let mut client = self.image_service();
        Pulling(runtime::spawn(async move {
            Ok(client.pull_image(request).await?.into_inner().image_ref)
        }))
    }

    /// Begins to pull images, all at once, and gives up waiting for them after a while.
    pub fn pull_at_once(
        &self,
        images: &[&str],
        patience: Duration,
    ) -> Vec<Option<Result<String, Status>>> {
        let pulls: Vec<_> = images
            .iter()
            .map(|image| {
                let request = PullImageRequest { image: spec(image) };
                let mut client = self.image_service();
                runtime::spawn(async move {
                    let pull = client.pull_image(request);
                    let answer = tokio::time::timeout(patience, pull).await.ok()?;
                    Some(answer.map(|answer| answer.into_inner().image_ref))
                })
            })
            .collect();
        let ended = pulls
            .into_iter()
            .map(|pull| runtime::wait(pull).ok().flatten());
        ended.collect()
    }

    /// Whether kubelet leaves an image alone when it makes room.
    ///
    /// # Errors
    /// What the CRI says.
    pub fn is_pinned(&self, image: &str) -> Result<bool> {
        let request = ImageStatusRequest { image: spec(image) };
        let answer = runtime::wait(self.image_service().image_status(request))?;
        Ok(answer.into_inner().image.is_some_and(|image| image.pinned))
    }

    /// Calls a method of the image service, which may be one that there is not, with an empty
    /// message, and takes one message for an answer.
    ///
    /// # Errors
    /// The status.
    pub fn call(&self, method: &str) -> Result<(), Status> {
        let mut client = Grpc::new(self.channel.clone());
        let path = format!("/runtime.v1.ImageService/{method}");
        let path =
            PathAndQuery::try_from(path).map_err(|error| Status::from_error(error.into()))?;
        let codec = ProstCodec::<ListImagesRequest, ListImagesResponse>::default();
        runtime::wait(async {
            let ready = client.ready().await;
            ready.map_err(|error| Status::unavailable(error.to_string()))?;
            let request = Request::new(ListImagesRequest {});
            client.unary(request, path, codec).await.map(|_| ())
        })
    }

    /// Removes an image with all its names, as kubelet does.
    ///
    /// # Errors
    /// What the CRI says.
    pub fn remove_image(&self, image: &str) -> Result<()> {
        let request = RemoveImageRequest { image: spec(image) };
        runtime::wait(self.image_service().remove_image(request))?;
        Ok(())
    }

    /// The directories whose file systems kubelet watches for images.
    ///
    /// # Errors
    /// What the CRI says.
    pub fn image_filesystems(&self) -> Result<Vec<String>> {
        let usages = self.image_usage()?.into_iter();
        Ok(usages.map(|(mountpoint, _)| mountpoint).collect())
    }

    /// The directories whose file systems kubelet watches for images, and how many bytes images have
    /// there.
    ///
    /// # Errors
    /// What the CRI says.
    pub fn image_usage(&self) -> Result<Vec<(String, u64)>> {
        let request = ImageFsInfoRequest {};
        let answer = runtime::wait(self.image_service().image_fs_info(request))?;
        let usages = answer.into_inner().image_filesystems.into_iter();
        let usage = |usage: FilesystemUsage| {
            Some((
                usage.fs_id?.mountpoint,
                usage.used_bytes.unwrap_or_default(),
            ))
        };
        Ok(usages.filter_map(usage).collect())
    }

    /// Starts a pod without containers, on the network of the host.
    ///
    /// # Errors
    /// What the CRI says.
    pub fn run_pod(&self) -> Result<Pod<'_>> {
        self.run_sandbox(namespaces(NamespaceMode::Node), PodSandboxConfig::default())
    }

    /// Starts a pod with a network and with users of its own, of which root is this one of the host.
    ///
    /// # Errors
    /// What the CRI says.
    pub fn run_pod_with_users_from(&self, host: u32) -> Result<Pod<'_>> {
        let mapping = IdMapping {
            host_id: host,
            container_id: 0,
            length: 65_536,
        };
        let users = UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: vec![mapping],
            gids: vec![mapping],
        };
        let namespaces = NamespaceOption {
            ipc: NamespaceMode::Pod.into(),
            userns_options: Some(users),
            ..namespaces(NamespaceMode::Pod)
        };
        self.run_sandbox(namespaces, PodSandboxConfig::default())
    }

    /// Starts a pod with a network of its own. A port of the host leads to one of the pod, and the
    /// logs of its containers are in this directory.
    ///
    /// # Errors
    /// What the CRI says.
    pub fn run_pod_with_port(&self, logs: &Path, host: u16, pod: u16) -> Result<Pod<'_>> {
        let mapping = PortMapping {
            protocol: Protocol::Tcp.into(),
            container_port: pod.into(),
            host_port: host.into(),
        };
        let config = PodSandboxConfig {
            log_directory: logs.display().to_string(),
            port_mappings: vec![mapping],
            ..PodSandboxConfig::default()
        };
        self.run_sandbox(namespaces(NamespaceMode::Pod), config)
    }

    fn run_sandbox(
        &self,
        namespaces: NamespaceOption,
        config: PodSandboxConfig,
    ) -> Result<Pod<'_>> {
        let metadata = PodSandboxMetadata {
            name: unique("pod"),
            uid: unique("uid"),
            namespace: "default".to_owned(),
        };
        let security_context = LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces.clone()),
        };
        let linux = LinuxPodSandboxConfig {
            security_context: Some(security_context),
        };
        let config = PodSandboxConfig {
            metadata: Some(metadata),
            linux: Some(linux),
            ..config
        };
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
        };
        let answer = runtime::wait(self.runtime_service().run_pod_sandbox(request))
            .context("RunPodSandbox")?;
        Ok(Pod {
            cri: self,
            id: answer.into_inner().pod_sandbox_id,
            namespaces,
            config,
        })
    }
}

fn spec(image: &str) -> Option<ImageSpec> {
    Some(ImageSpec {
        image: image.to_owned(),
        ..ImageSpec::default()
    })
}

fn namespaces(network: NamespaceMode) -> NamespaceOption {
    NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Node.into(),
        userns_options: None,
    }
}

/// A pod, which is stopped and removed with this value, and its containers with it.
#[derive(Debug)]
pub struct Pod<'a> {
    cri: &'a Cri,
    id: String,
    namespaces: NamespaceOption,
    config: PodSandboxConfig,
}

impl Pod<'_> {
    /// Creates a container with directories of the host, each with its place in the container, and
    /// gives its identifier.
    ///
    /// # Errors
    /// The status of CreateContainer.
    pub fn create_container(
        &self,
        image: &str,
        command: &[&str],
        volumes: &[(&Path, &str)],
    ) -> Result<String, Status> {
        let security_context = LinuxContainerSecurityContext {
            namespace_options: Some(self.namespaces.clone()),
        };
        let mount = |(host_path, container_path): &(&Path, &str)| Mount {
            container_path: (*container_path).to_owned(),
            host_path: host_path.display().to_string(),
        };
        let name = unique("container");
        let config = ContainerConfig {
            log_path: format!("{name}.log"),
            metadata: Some(ContainerMetadata { name }),
            image: spec(image),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            mounts: volumes.iter().map(mount).collect(),
            linux: Some(LinuxContainerConfig {
                security_context: Some(security_context),
            }),
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let answer = runtime::wait(self.cri.runtime_service().create_container(request))?;
        Ok(answer.into_inner().container_id)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// What the CRI says.
    pub fn start_container(&self, id: &str) -> Result<()> {
        let container_id = id.to_owned();
        let request = StartContainerRequest { container_id };
        runtime::wait(self.cri.runtime_service().start_container(request))
            .context("StartContainer")?;
        Ok(())
    }

    /// Runs a command in a container, and gives what that writes to standard output.
    ///
    /// # Errors
    /// What the CRI says, and the command's own.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<String> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
        };
        let answer = runtime::wait(self.cri.runtime_service().exec_sync(request))?.into_inner();
        let stderr = String::from_utf8_lossy(&answer.stderr);
        ensure!(answer.exit_code == 0, "{}: {stderr}", answer.exit_code);
        Ok(String::from_utf8(answer.stdout)?)
    }

    /// The address of the pod in its network.
    ///
    /// # Errors
    /// What the CRI says.
    pub fn ip(&self) -> Result<String> {
        let pod_sandbox_id = self.id.clone();
        let request = PodSandboxStatusRequest { pod_sandbox_id };
        let answer = runtime::wait(self.cri.runtime_service().pod_sandbox_status(request))?;
        let network = answer.into_inner().status.and_then(|status| status.network);
        Ok(network.context("a pod without a network")?.ip)
    }

    /// Starts a container whose command ends by itself, and waits until it has ended well.
    ///
    /// # Errors
    /// What the CRI says, and another exit code than 0.
    pub fn run_container(&self, id: &str) -> Result<()> {
        self.start_container(id)?;
        let code = poll("the end of a container", SETTLE, || {
            let container_id = id.to_owned();
            let request = ContainerStatusRequest { container_id };
            let answer = runtime::wait(self.cri.runtime_service().container_status(request))?;
            let status = answer.into_inner().status.unwrap_or_default();
            let has_ended = status.state() == ContainerState::ContainerExited;
            Ok(has_ended.then_some(status.exit_code))
        })?;
        ensure!(code == 0, "the container ended with {code}");
        Ok(())
    }

    /// Stops and removes a container.
    ///
    /// # Errors
    /// What the CRI says.
    pub fn remove_container(&self, id: &str) -> Result<()> {
        let mut client = self.cri.runtime_service();
        let (container_id, timeout) = (id.to_owned(), 10);
        let stop = StopContainerRequest {
            container_id,
            timeout,
        };
        runtime::wait(client.stop_container(stop))?;
        let container_id = id.to_owned();
        runtime::wait(client.remove_container(RemoveContainerRequest { container_id }))?;
        Ok(())
    }

    /// Stops and removes the pod with its containers.
    ///
    /// # Errors
    /// What the CRI says.
    pub fn remove(self) -> Result<()> {
        self.end()?;
        // What remains to be done was done.
        std::mem::forget(self);
        Ok(())
    }

    fn end(&self) -> Result<()> {
        let mut client = self.cri.runtime_service();
        let pod_sandbox_id = self.id.clone();
        runtime::wait(client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id }))?;
        let pod_sandbox_id = self.id.clone();
        runtime::wait(client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }))?;
        Ok(())
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        // After a failed test there may be nothing to remove; containerd's own end does the rest.
        let _ = self.end();
    }
}
