//! ZooKeeper: a write is acknowledged when a majority has it in its log.

use super::{Application, Commands};

/// The example.
pub const ZOOKEEPER: Application = Application {
    name: "zookeeper",
    needs: &[],
    images: &["zookeeper"],
    set: "zk",
    members: 3,
    selector: "app=zk",
    client_image: "berth.local/zookeeper:3.8",
    commands: Commands {
        prepare: r#"timeout 30 python3 -c '
from kazoo.client import KazooClient
zk = KazooClient(hosts="zk-cs:2181")
zk.start(timeout=10)
zk.ensure_path("/ledger")
zk.stop()'"#,
        write: r#"timeout 45 python3 - $1 $2 <<'PYTHON'
import sys
from kazoo.client import KazooClient
zk = KazooClient(hosts="zk-cs:2181")
zk.start(timeout=8)
for n in range(int(sys.argv[1]), int(sys.argv[2]) + 1):
    zk.create_async(f"/ledger/{n}", b"written").get(timeout=4)
    print(n, flush=True)
PYTHON"#,
        // The member that answers asks the leader first how far the others are.
        read: r#"timeout 30 python3 -c '
from kazoo.client import KazooClient
zk = KazooClient(hosts="zk-cs:2181")
zk.start(timeout=10)
zk.sync("/ledger")
print("\n".join(zk.get_children("/ledger")))'"#,
        // What this member has itself.
        read_member: r#"timeout 30 python3 - $1 <<'PYTHON'
import sys
from kazoo.client import KazooClient
zk = KazooClient(hosts=f"zk-{sys.argv[1]}.zk-hs:2181")
zk.start(timeout=10)
print("\n".join(zk.get_children("/ledger")))
PYTHON"#,
    },
    replicated: true,
};
