//! Volumes that are copied from one node's agent to another's.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use agent::Config;
use clap::Parser;
use pb::agent::v1::{
    ImportVolumeRequest, ImportVolumeResponse, InspectVolumeRequest,
    volume_agent_service_client::VolumeAgentServiceClient,
};
use runtime::CancellationToken;
use tokio::task::JoinHandle;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    Line, Node,
    driver::Driver,
    machine::{build_images, inside, wait},
    volumes::{self, volume, with_volume},
};

/// A second node, as far as volumes go: its container runtime never comes up.
struct Target {
    dir: PathBuf,
    driver: Driver,
    agent: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Target {
    fn start(node: &Node) -> Self {
        let dir = node.machine.dir.join("second");
        let (driver, _stop) = Driver::start(&dir);
        let mut target = Self { dir, driver, agent: None };
        target.start_agent();
        target
    }

    fn start_agent(&mut self) {
        let line = [
            "agent",
            "--listen=127.0.0.1:7451",
            "--node-name=node-2",
            "--cri=unix:///nowhere.sock",
            &format!("--data-dir={}", self.dir.join("data").display()),
            &format!("--csi-dir={}", self.dir.join("csi").display()),
            "--csi-timeout=2",
        ];
        let config: Config = Line::parse_from(line).config;
        self.agent = Some(tokio::spawn(agent::run(config, CancellationToken::new())));
    }

    async fn kill_agent(&mut self) {
        let task = self.agent.take().unwrap();
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    }

    async fn client(&self) -> VolumeAgentServiceClient<Channel> {
        loop {
            if let Ok(client) = VolumeAgentServiceClient::connect("http://127.0.0.1:7451").await {
                return client;
            }
        }
    }

    async fn begin(&self, from: &str, to: &str) -> Streaming<ImportVolumeResponse> {
        let request = ImportVolumeRequest {
            from: "http://127.0.0.1:7450".into(),
            source: Some(volume(from, "ReadWriteOnce")),
            target: Some(volume(to, "ReadWriteOnce")),
        };
        self.client().await.import_volume(request).await.unwrap().into_inner()
    }

    /// Again for as long as an earlier copy is being taken down.
    async fn import(&self, from: &str, to: &str) -> Result<Vec<ImportVolumeResponse>, Status> {
        loop {
            let mut stream = self.begin(from, to).await;
            let mut all = Vec::new();
            let ended = loop {
                match stream.message().await {
                    Ok(Some(message)) => all.push(message),
                    Ok(None) => break Ok(all),
                    Err(status) => break Err(status),
                }
            };
            if ended.as_ref().is_err_and(|status| status.code() == Code::Aborted) {
                continue;
            }
            return ended;
        }
    }

    async fn in_use(&self, handle: &str) -> bool {
        let request = InspectVolumeRequest { driver: "test".into(), volume_handle: handle.into(), stats: false };
        self.client().await.inspect_volume(request).await.unwrap().into_inner().in_use
    }

    /// Until both sides have taken their mounts down.
    async fn until_unmounted(&self, from: &str, to: &str) {
        let limit = std::time::Instant::now() + crate::LIMIT;
        let mounted = || {
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            // Other mounts of the real machine are seen here too.
            let machine = self.dir.parent().unwrap().display().to_string();
            let here = table.lines().filter(|line| line.contains(&machine));
            let copies = here.filter(|line| line.contains("/transfers/") || line.contains("/staging/"));
            copies.map(str::to_owned).collect::<Vec<_>>()
        };
        // The source may hear of a copy only when the target has given it up already.
        while self.in_use(to).await || volumes::inspect(from).await.in_use || !mounted().is_empty() {
            assert!(std::time::Instant::now() < limit, "still in use after {:?}: {:?}", crate::LIMIT, mounted());
        }
    }
}

/// What `find` and `sha256sum` say of a folder.
fn seen(dir: PathBuf) -> String {
    let script = "cd \"$0\" && find . -printf '%p %y %m %U:%G %T@ %l\\n' | sort && \
                  find . -type f -print0 | sort -z | xargs -0r sha256sum";
    crate::machine::run("bash", &["-c", script, &dir.display().to_string()])
}

#[test]
fn a_volume_is_copied_to_another_node_whole_or_not_at_all() {
    build_images();
    inside("transfers::a_volume_is_copied_to_another_node_whole_or_not_at_all", |machine| async {
        let node = Node::start(machine).await;
        let mut target = Target::start(&node);
        let (from, to) = (node.driver.data("old"), target.driver.data("new"));
        fs::create_dir_all(from.join("sub/empty")).unwrap();
        fs::create_dir_all(&to).unwrap();
        fs::write(from.join("sub/one"), "1").unwrap();
        fs::hard_link(from.join("sub/one"), from.join("two")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", from.join("link")).unwrap();
        let noise: Vec<u8> = (0..40u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        fs::write(from.join("large"), &noise).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&from, Some(70), Some(70)).unwrap();
        wait("the drivers are known", || {
            [&node.driver, &target.driver].iter().all(|driver| driver.state.lock().registered.len() == 1)
        });

        // Not while a pod of the node has it.
        node.cluster.put_pod("node-1", with_volume("web-0", volumes::SLEEP, volume("old", "ReadWriteOnce")));
        node.ready("uid-web-0").await;
        let refused = target.import("old", "new").await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().contains("default/web-0"), "{refused:?}");
        node.stop("uid-web-0").await;
        target.until_unmounted("old", "new").await;

        // The caller goes away, the agent goes away: nothing stays mounted, and the next try begins anew.
        let mut stream = target.begin("old", "new").await;
        stream.message().await.unwrap();
        drop(stream);
        target.until_unmounted("old", "new").await;
        let stream = target.begin("old", "new").await;
        let staged = target.driver.clone();
        let before = staged.count("NodePublishVolume");
        wait("it is under way", || staged.count("NodePublishVolume") > before - 1);
        target.kill_agent().await;
        drop(stream);
        target.start_agent();
        target.until_unmounted("old", "new").await;

        let told = target.import("old", "new").await.unwrap();
        let last = told.last().unwrap();
        assert!(last.verified && last.done_bytes == last.total_bytes, "{last:?}");
        assert_eq!(last.total_bytes, (40 << 20) + 1);
        assert!(told.iter().rev().skip(1).all(|message| !message.verified));
        target.until_unmounted("old", "new").await;
        assert_eq!(seen(from.clone()), seen(to.clone()));

        // What is there already is never written over.
        let refused = target.import("old", "new").await.unwrap_err();
        assert!(refused.message().contains("not empty"), "{refused:?}");
        target.until_unmounted("old", "new").await;
        assert_eq!(seen(from), seen(to));
        node.assert_clean();
    });
}
