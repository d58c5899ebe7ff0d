//! A machine of its own for a test: new network, mount and process namespaces, with a real containerd in a folder that
//! goes away. When the test ends, however it ends, the kernel ends all its processes and mounts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Set in the environment of a test that runs inside.
const INSIDE: &str = "BERTH_TEST_MACHINE";

/// Runs `body` in a machine of its own: the test binary starts itself anew there, with this one test.
pub fn inside<F: Future<Output = ()>>(test: &str, body: impl FnOnce(Machine) -> F) {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let limit = Duration::from_secs(180);
            tokio::time::timeout(limit, body(Machine::start())).await.expect("the test takes more than 180 s");
        });
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("{test}: not run, it needs root");
        return;
    }
    let scratch = tempfile::Builder::new().prefix("berth-").tempdir().unwrap();
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, scratch.path())
        .status()
        .expect("unshare (util-linux) must be there");
    remove_cgroups(&cgroup(scratch.path()));
    if !status.success() {
        let log = fs::read_to_string(scratch.path().join("containerd.log")).unwrap_or_default();
        let tail: Vec<_> = log.lines().rev().take(40).collect();
        let tail: Vec<_> = tail.into_iter().rev().collect();
        panic!("{test} failed; containerd said at last:\n{}", tail.join("\n"));
    }
}

fn cgroup(dir: &Path) -> String {
    format!("berth-test-{}", dir.file_name().unwrap().to_string_lossy().trim_start_matches("berth-"))
}

fn remove_cgroups(name: &str) {
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path()) {
        for path in [hierarchy.join(name), Path::new("/sys/fs/cgroup").join(name)] {
            let Ok(children) = fs::read_dir(&path) else { continue };
            for child in children.flatten().filter(|child| child.path().is_dir()) {
                drop(fs::remove_dir(child.path()));
            }
            drop(fs::remove_dir(path));
        }
    }
}

pub struct Machine {
    pub dir: PathBuf,
    containerd: Child,
}

impl Machine {
    fn start() -> Self {
        let dir = PathBuf::from(std::env::var_os(INSIDE).unwrap());
        run("mount", &["--make-rprivate", "/"]);
        run("ip", &["link", "set", "lo", "up"]);
        // The node's own address.
        run("ip", &["link", "add", "eth0", "type", "bridge"]);
        run("ip", &["address", "add", "10.99.0.1/24", "dev", "eth0"]);
        run("ip", &["link", "set", "eth0", "up"]);
        fs::create_dir_all(dir.join("data/cni/net.d")).unwrap();
        write_containerd_config(&dir);
        let containerd = start_containerd(&dir);
        let machine = Self { dir, containerd };
        machine.load_images();
        machine
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    pub fn cgroup_parent(&self) -> String {
        format!("/{}", cgroup(&self.dir))
    }

    /// What `ctr` says.
    pub fn ctr(&self, args: &[&str]) -> String {
        let socket = self.socket().display().to_string();
        run("ctr", &[&["--address", &socket, "--namespace", "k8s.io"], args].concat())
    }

    /// Ids of containers whose processes run, sandboxes included.
    pub fn tasks(&self) -> Vec<String> {
        let listed = self.ctr(&["tasks", "list"]);
        let running = listed.lines().filter(|line| line.contains("RUNNING"));
        let mut ids: Vec<_> = running.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect();
        ids.sort();
        ids
    }

    fn load_images(&self) {
        wait("containerd answers", || {
            Command::new("ctr")
                .arg("--address")
                .arg(self.socket())
                .arg("version")
                .output()
                .is_ok_and(|o| o.status.success())
        });
        for image in ["pause", "nginx"] {
            let path = images().join(format!("{image}.tar"));
            self.ctr(&["images", "import", &path.display().to_string()]);
        }
        wait("CRI knows the images", || {
            self.ctr(&["images", "list"]).lines().skip(1).all(|line| line.contains("io.cri-containerd.image=managed"))
        });
    }

    /// kill -9 of containerd, then a new one. Its shims and containers live on.
    pub fn restart_containerd(&mut self) {
        self.containerd.kill().unwrap();
        self.containerd.wait().unwrap();
        self.containerd = start_containerd(&self.dir);
    }
}

fn start_containerd(dir: &Path) -> Child {
    let log = fs::File::options().create(true).append(true).open(dir.join("containerd.log")).unwrap();
    Command::new("containerd")
        .arg("--config")
        .arg(dir.join("containerd.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("containerd must be installed")
}

/// The project's own configuration, as the lab uses it.
fn write_containerd_config(dir: &Path) {
    let template = repository().join("deploy/containerd/config.toml.template");
    let text = fs::read_to_string(template).unwrap();
    let values = [
        ("@DIR@", dir.join("containerd")),
        ("@SOCKET@", dir.join("containerd.sock")),
        ("@TTRPC@", dir.join("containerd.sock.ttrpc")),
        ("@PAUSE@", "berth.local/pause:1".into()),
        ("@CNI_BIN@", "/usr/lib/cni".into()),
        ("@CNI_CONF@", dir.join("data/cni/net.d")),
        ("@SNAPSHOTTER@", "native".into()),
    ];
    let text = values.iter().fold(text, |text, (key, value)| text.replace(key, &value.display().to_string()));
    fs::write(dir.join("containerd.toml"), text).unwrap();
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Archives of the images; built when they are not there.
pub fn images() -> PathBuf {
    if let Some(dir) = std::env::var_os("BERTH_IMAGES") {
        return dir.into();
    }
    std::env::current_exe().unwrap().parent().and_then(Path::parent).and_then(Path::parent).unwrap().join("images")
}

/// Before the test enters its machine, which has no way to the package archive.
pub fn build_images() {
    if std::env::var_os(INSIDE).is_none() && nix::unistd::geteuid().is_root() {
        let script = repository().join("deploy/images/build.sh");
        run("bash", &[&script.display().to_string(), &images().display().to_string()]);
    }
}

pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {}: {}{}",
        args.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Looks every 20 ms, at most 30 s.
pub fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = std::time::Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(std::time::Instant::now() < limit, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
