//! Redis: a member that acknowledges a write has it on its disk. Each key is with one member alone.

use super::{Application, Commands};

/// The example.
pub const REDIS: Application = Application {
    name: "redis",
    needs: &[],
    images: &["redis"],
    set: "redis",
    members: 3,
    selector: "app=redis",
    client_image: "berth.local/redis:7.0",
    commands: Commands {
        // Every slot has a member, and every member knows that.
        prepare: r"
            for i in 0 1 2; do
              timeout 5 redis-cli -h redis-$i.redis cluster info | tr -d '\r' >/tmp/info || exit 1
              grep -qx cluster_slots_ok:16384 /tmp/info && grep -qx cluster_known_nodes:3 /tmp/info || exit 1
            done",
        write: r#"
            for n in $(seq $1 $2); do
              said=$(timeout 5 redis-cli -c -h redis-client set ledger:$n written 2>&1)
              [ "$said" = OK ] || { echo "$said" >&2; exit 1; }
              echo $n
            done"#,
        read: r"
            for i in 0 1 2; do
              timeout 20 redis-cli -e -h redis-$i.redis --scan --pattern 'ledger:*' >/tmp/read.$i || exit 1
            done
            sed -n 's,^ledger:,,p' /tmp/read.*",
        read_member: r"
            timeout 20 redis-cli -e -h redis-$1.redis --scan --pattern 'ledger:*' >/tmp/member || exit 1
            sed -n 's,^ledger:,,p' /tmp/member",
    },
    replicated: false,
};
