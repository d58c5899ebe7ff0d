//! The lab on this machine for real: etcd, containerd, network namespaces, mounts and cgroups; only the roles are
//! doubles. Needs root and the packages of `deploy/setup.sh`.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lab::state::Phase;
use lab::system::{ProcessId, wait_until};
use lab::{Lab, LabId, leftovers};
use nix::sys::signal::Signal;
use tempfile::TempDir;

const BERTH: &str = env!("CARGO_BIN_EXE_lab-test-berth");
const LIMIT: Duration = Duration::from_secs(30);

/// A lab of a test's own; taken down when the test ends, however it ends.
struct Site {
    id: LabId,
    subnet: String,
    port_base: u16,
    _folder: TempDir,
}

impl Site {
    /// Every test takes another `number`, so that they can run at the same time. None without root.
    fn new(number: u8) -> Option<Self> {
        if !nix::unistd::Uid::effective().is_root() {
            println!("skipped: the lab needs root, run the tests with sudo");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("lab").tempdir().unwrap();
        let site = Self {
            id: LabId {
                name: format!("t{number}").parse().unwrap(),
                dir: folder.path().canonicalize().unwrap().join("l"),
            },
            subnet: format!("10.88.{}.0/24", 100 + number),
            port_base: 27000 + u16::from(number) * 100,
            _folder: folder,
        };
        site.down();
        Some(site)
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(BERTH);
        command.args(["lab", verb, "--name", self.id.name.as_str(), "--dir"]).arg(&self.id.dir);
        command
    }

    fn up_command(&self, nodes: u8) -> Command {
        let mut command = self.command("up");
        command
            .args(["--nodes", &nodes.to_string(), "--subnet", &self.subnet])
            .args(["--port-base", &self.port_base.to_string(), "--images"])
            .arg(images());
        command
    }

    fn up(&self, nodes: u8) -> Lab {
        let output = self.up_command(nodes).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        Lab::open(&self.id).unwrap().unwrap()
    }

    fn down(&self) -> String {
        let output = self.command("down").output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(leftovers(&self.id).unwrap(), []);
        text(&output)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Err(e) = lab::down(&self.id, &mut std::io::sink()) {
            eprintln!("cannot take the lab down: {e:#}");
        }
    }
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).join("\n")
}

/// The images that `make` built, else built here beside the binary; costs nothing when they are there.
fn images() -> PathBuf {
    if let Some(dir) = std::env::var_os("BERTH_IMAGES") {
        return dir.into();
    }
    let dir = Path::new(BERTH).ancestors().nth(2).unwrap().join("images");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/images/build.sh");
    let output = Command::new(script).arg(&dir).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    dir
}

fn kill(process: ProcessId) {
    process.signal(Signal::SIGKILL).unwrap();
}

/// Starts a container in the lab's cgroup on node 1, and returns its process.
fn start_container(lab: &Lab) -> ProcessId {
    let layout = lab.layout();
    let node = layout.all_nodes().next().unwrap();
    let run = |args: &[&str]| {
        let output = Command::new("ctr")
            .arg("--address")
            .arg(layout.containerd_socket(node))
            .args(["--namespace", "k8s.io"])
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let group = format!("{}/c1", layout.cgroup_parent(node));
    let image = "registry.k8s.io/nginx-slim:0.24";
    // The default folders are shared by the whole machine.
    let runc = layout.containerd_dir(node).join("runc");
    let runc = runc.to_str().unwrap();
    let own = ["--runc-root", runc, "--fifo-dir", runc, "--cgroup", &group];
    run(&[&["run", "--detach"], &own[..], &[image, "c1"]].concat());
    let tasks = run(&["tasks", "list"]);
    let line = tasks.lines().find(|line| line.starts_with("c1")).unwrap();
    ProcessId::of(line.split_whitespace().nth(1).unwrap().parse().unwrap()).unwrap()
}

#[tokio::test]
async fn lives_through_crashes_and_leaves_nothing() {
    let Some(site) = Site::new(1) else { return };
    let lab = site.up(2);
    let state = lab.state().unwrap().unwrap();
    assert!(state.unsettled().is_empty(), "{state:?}");

    // A node reaches the control plane over the bridge, and the other node.
    let layout = lab.layout();
    let [one, two] = layout.all_nodes().collect::<Vec<_>>().try_into().unwrap();
    let ping = |node, address: std::net::Ipv4Addr| {
        let script = format!("exec 3<>/dev/tcp/{address}/{}", layout.api().port());
        let mut command = lab.command_on(node, "bash");
        command.args(["-c", &script]).status().unwrap().success()
    };
    assert!(ping(one, layout.gateway()));
    let agent = format!("exec 3<>/dev/tcp/{}/{}", layout.node_ip(two), layout.agent(two).port());
    assert!(lab.command_on(one, "bash").args(["-c", &agent]).status().unwrap().success());

    // Up again changes nothing.
    let again = site.up_command(2).output().unwrap();
    assert!(text(&again).contains("is up already"), "{}", text(&again));
    assert_eq!(lab.state().unwrap().unwrap(), state);
    // With another size it is refused, and says what to do.
    let other = site.up_command(3).output().unwrap();
    assert!(!other.status.success());
    assert!(text(&other).contains("berth lab down"), "{}", text(&other));

    // A killed process comes back, the others stay.
    for name in ["api", "etcd", "agent@node-2"] {
        let old = lab.kill(name).unwrap();
        lab.restarted(name, old, LIMIT).await.unwrap();
        assert_eq!(lab.process(name).unwrap().restarts, 1);
    }
    assert_eq!(lab.process("scheduler").unwrap().restarts, 0);

    // A killed runtime and a killed supervisor leave containers alone.
    let container = start_container(&lab);
    let old = lab.kill("containerd@node-1").unwrap();
    lab.restarted("containerd@node-1", old, LIMIT).await.unwrap();
    kill(lab.supervisor().unwrap().unwrap());
    wait_until("the supervisor is gone", LIMIT, || {
        anyhow::ensure!(lab.supervisor()?.is_none(), "it lives");
        Ok(())
    })
    .await
    .unwrap();
    let status = site.command("status").output().unwrap();
    assert_eq!(status.status.code(), Some(1), "{}", text(&status));
    let took_over = site.up_command(2).output().unwrap();
    assert!(text(&took_over).contains("took over"), "{}", text(&took_over));
    assert!(container.alive());

    // Down finds everything without the supervisor's help.
    kill(lab.supervisor().unwrap().unwrap());
    let down = site.down();
    assert!(down.contains("nothing of it is left"), "{down}");
    assert!(!container.alive());
    assert!(site.down().contains("nothing to remove"));
}

/// Kills the command that brings the lab up, and its supervisor, at many moments: `down` always cleans up.
#[test]
fn an_interrupted_up_is_removed_completely() {
    let Some(site) = Site::new(2) else { return };
    images();
    for round in 0..12u64 {
        let moment = Duration::from_millis(5 + round * round * 8);
        let mut up: Child = site.up_command(1).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(moment);
        up.kill().unwrap();
        up.wait().unwrap();
        if let Ok(Some(lab)) = Lab::open(&site.id)
            && let Ok(Some(supervisor)) = lab.supervisor()
        {
            kill(supervisor);
        }
        site.down();
    }
}

/// Moments are also good for going on instead: the next `up` makes the lab whole.
#[test]
fn an_interrupted_up_is_finished_by_the_next() {
    let Some(site) = Site::new(3) else { return };
    images();
    for round in 0..4u64 {
        let mut up = site.up_command(1).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(20 + round * 90));
        up.kill().unwrap();
        up.wait().unwrap();
        let lab = site.up(1);
        assert!(lab.state().unwrap().unwrap().unsettled().is_empty());
        site.down();
    }
}

#[test]
fn a_lab_that_cannot_come_up_says_why() {
    let Some(site) = Site::new(4) else { return };
    // Somebody else's port.
    let listener = TcpListener::bind(("127.0.0.1", site.port_base + 2)).unwrap();
    let output = site.up_command(1).output().unwrap();
    let message = text(&output);
    assert!(!output.status.success());
    assert!(message.contains(&format!("{}", site.port_base + 2)), "{message}");
    assert!(message.contains("--port-base"), "{message}");
    drop(listener);
    site.down();

    // Images that are not there.
    let output = site.command("up").args(["--images", "/nonexistent"]).output().unwrap();
    assert!(text(&output).contains("deploy/images/build.sh"), "{}", text(&output));
    site.down();

    // A role that ends at once: its name, its exit and its log are in the message.
    let broken = site.id.dir.with_file_name("broken");
    fs::write(
        &broken,
        format!("#!/bin/sh\n[ \"$1\" != scheduler ] || {{ echo no such luck; exit 7; }}\nexec {BERTH} \"$@\"\n"),
    )
    .unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&broken, mode).unwrap();
    let output = site.up_command(1).args(["--timeout", "4", "--berth-bin"]).arg(&broken).output().unwrap();
    let message = text(&output);
    assert!(!output.status.success(), "{message}");
    for part in ["scheduler is ", "exit status: 7", "no such luck", "lab down"] {
        assert!(message.contains(part), "{part:?} is missing in: {message}");
    }
    // It was tried again, but not all the time.
    let lab = Lab::open(&site.id).unwrap().unwrap();
    let scheduler = lab.process("scheduler").unwrap();
    assert!((4..12).contains(&scheduler.restarts), "{scheduler:?}");
    assert_ne!(scheduler.phase, Phase::Ready);
}

#[test]
fn down_never_deletes_what_is_not_a_lab() {
    let Some(site) = Site::new(5) else { return };
    fs::create_dir_all(site.id.dir.join("precious")).unwrap();
    let output = site.command("down").output().unwrap();
    assert!(!output.status.success());
    assert!(text(&output).contains("refusing"), "{}", text(&output));
    assert!(site.id.dir.join("precious").exists());
    // Nor does up take it.
    let output = site.up_command(1).output().unwrap();
    assert!(text(&output).contains("--dir"), "{}", text(&output));
    fs::remove_dir_all(&site.id.dir).unwrap();
}

/// What a pod could leave: a frozen process, a mount that is in use, a loop device.
#[test]
fn down_removes_what_resists() {
    let Some(site) = Site::new(6) else { return };
    let lab = site.up(1);
    let node = lab.layout().all_nodes().next().unwrap();
    let volumes = lab.layout().local_dir(node);
    let sh = |script: &str| {
        let status = Command::new("sh").args(["-ec", script]).status().unwrap();
        assert!(status.success(), "{script}");
    };
    let volumes = volumes.display();
    sh(&format!(
        "cd {volumes}; mkdir a b; mount -t tmpfs none a; mkdir a/c; mount -t tmpfs none a/c; mount --bind a b"
    ));
    if Path::new("/dev/loop-control").exists() {
        sh(&format!("cd {volumes}; truncate -s 1M image; losetup --find image"));
    }
    // It runs in the node's network, has its folder on a mount, and carries no mark.
    let mut stubborn = lab
        .command_on(node, "sh")
        .args(["-c", "trap '' TERM INT HUP; echo in; while :; do sleep 60; done"])
        .current_dir(format!("{volumes}/a/c"))
        .env_remove(lab::layout::MARKER)
        .spawn()
        .unwrap();
    let container = start_container(&lab);
    let freezer = PathBuf::from("/sys/fs/cgroup/freezer")
        .join(lab.layout().cgroup_parent(node).trim_start_matches('/'))
        .join("c1/freezer.state");
    if freezer.exists() {
        fs::write(&freezer, "FROZEN").unwrap();
    }
    let started = Instant::now();
    site.down();
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    assert!(!container.alive());
    stubborn.wait().unwrap();
}
