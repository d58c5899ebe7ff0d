//! What keeping a node tidy asks of the container runtime.

use std::path::PathBuf;

use k8s_cri::v1 as cri;
use tonic::Status;

use super::{CHANGE, Cri, HashMap, LOOK, gone_is_fine, label, within};
use crate::gc::Used;

impl Cri {
    /// The running containers of this node, with their logs.
    pub async fn running_logs(&self) -> Result<Vec<(String, PathBuf)>, Status> {
        let mine = HashMap::from([(label::NODE.to_owned(), self.node.to_string())]);
        let state = Some(cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning.into() });
        let filter = cri::ContainerFilter { label_selector: mine, state, ..Default::default() };
        let mut client = self.runtime.clone();
        let listed = within(LOOK, client.list_containers(cri::ListContainersRequest { filter: Some(filter) })).await?;
        let mut logs = Vec::new();
        for container in listed.containers {
            let request = cri::ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
            let status = match within(LOOK, client.container_status(request)).await {
                Err(status) if status.code() == tonic::Code::NotFound => continue,
                status => status?.status.unwrap_or_default(),
            };
            if !status.log_path.is_empty() {
                logs.push((container.id, status.log_path.into()));
            }
        }
        Ok(logs)
    }

    /// Makes the runtime write a container's log to a new file.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Status> {
        let mut client = self.runtime.clone();
        let request = cri::ReopenContainerLogRequest { container_id: id.to_owned() };
        within(LOOK, client.reopen_container_log(request)).await.map(drop)
    }

    /// All images of the node.
    pub async fn images(&self) -> Result<Vec<cri::Image>, Status> {
        let mut client = self.images.clone();
        Ok(within(LOOK, client.list_images(cri::ListImagesRequest { filter: None })).await?.images)
    }

    /// The images of all containers, whoever made them.
    pub async fn used_images(&self) -> Result<Used, Status> {
        let mut client = self.runtime.clone();
        let listed = within(LOOK, client.list_containers(cri::ListContainersRequest { filter: None })).await?;
        let names = listed.containers.into_iter().flat_map(|container| {
            let asked = container.image.map(|image| image.image);
            [Some(container.image_ref), asked].into_iter().flatten()
        });
        Ok(names.filter(|name| !name.is_empty()).collect())
    }

    /// The image that sandboxes run; empty if the runtime does not tell.
    pub async fn sandbox_image(&self) -> Result<String, Status> {
        let mut client = self.runtime.clone();
        let status = within(LOOK, client.status(cri::StatusRequest { verbose: true })).await?;
        let config = status.info.get("config").and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
        let image = config.as_ref().and_then(|config| config.get("sandboxImage")?.as_str());
        Ok(image.unwrap_or_default().to_owned())
    }

    /// Where the images are; None if the runtime does not tell.
    pub async fn image_folder(&self) -> Result<Option<PathBuf>, Status> {
        let mut client = self.images.clone();
        let info = within(LOOK, client.image_fs_info(cri::ImageFsInfoRequest {})).await?;
        Ok(info.image_filesystems.into_iter().find_map(|one| one.fs_id).map(|id| id.mountpoint.into()))
    }

    /// Removes an image. Idempotent.
    pub async fn remove_image(&self, id: &str) -> Result<(), Status> {
        let mut client = self.images.clone();
        let image = Some(cri::ImageSpec { image: id.to_owned(), ..Default::default() });
        gone_is_fine(within(CHANGE, client.remove_image(cri::RemoveImageRequest { image })).await.map(drop))
    }
}
