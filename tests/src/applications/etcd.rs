//! etcd: a member that acknowledges a write has a majority behind it.

use super::{Application, Commands};

/// The example.
pub const ETCD: Application = Application {
    name: "etcd",
    needs: &[],
    images: &["etcd"],
    set: "etcd",
    members: 3,
    selector: "app=etcd",
    client_image: "berth.local/etcd:3.4",
    commands: Commands {
        prepare: "timeout 10 etcdctl --endpoints=etcd-0.etcd:2379,etcd-1.etcd:2379,etcd-2.etcd:2379 endpoint health",
        write: r"
            for n in $(seq $1 $2); do
              timeout 6 etcdctl --endpoints=etcd-0.etcd:2379,etcd-1.etcd:2379,etcd-2.etcd:2379 \
                put /ledger/$n written >/dev/null || exit 1
              echo $n
            done",
        read: r"
            timeout 20 etcdctl --endpoints=etcd-0.etcd:2379,etcd-1.etcd:2379,etcd-2.etcd:2379 \
              get --prefix /ledger/ --keys-only >/tmp/read || exit 1
            sed -n 's,^/ledger/,,p' /tmp/read",
        // What this member has on its own disk, without asking the others.
        read_member: r"
            timeout 20 etcdctl --endpoints=etcd-$1.etcd:2379 get --consistency=s --prefix /ledger/ --keys-only \
              >/tmp/read || exit 1
            sed -n 's,^/ledger/,,p' /tmp/read",
    },
    replicated: true,
};
