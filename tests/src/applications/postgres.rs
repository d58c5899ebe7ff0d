//! PostgreSQL with Patroni: a commit is acknowledged when the synchronous replica has it, and only that one takes over.

use super::{Application, Commands};

/// The example.
pub const POSTGRES: Application = Application {
    name: "postgres",
    needs: &["etcd"],
    images: &["postgres"],
    set: "postgres",
    members: 3,
    selector: "app=postgres",
    client_image: "berth.local/postgres:15",
    commands: Commands {
        prepare: r#"
            export PGPASSWORD=super-secret PGCONNECT_TIMEOUT=3
            timeout 20 psql -qAt "host=postgres-0.postgres,postgres-1.postgres,postgres-2.postgres user=postgres \
              target_session_attrs=read-write" -c 'CREATE TABLE IF NOT EXISTS ledger (n INT PRIMARY KEY)'"#,
        write: r#"
            export PGPASSWORD=super-secret PGCONNECT_TIMEOUT=3
            for n in $(seq $1 $2); do
              timeout 10 psql -qAt "host=postgres-0.postgres,postgres-1.postgres,postgres-2.postgres user=postgres \
                target_session_attrs=read-write" -c "INSERT INTO ledger VALUES ($n)" || exit 1
              echo $n
            done"#,
        read: r#"
            export PGPASSWORD=super-secret PGCONNECT_TIMEOUT=3
            timeout 20 psql -qAt "host=postgres-0.postgres,postgres-1.postgres,postgres-2.postgres user=postgres \
              target_session_attrs=read-write" -c 'SELECT n FROM ledger'"#,
        read_member: r#"
            export PGPASSWORD=super-secret PGCONNECT_TIMEOUT=3
            timeout 20 psql -qAt "host=postgres-$1.postgres user=postgres" -c 'SELECT n FROM ledger'"#,
    },
    replicated: true,
};
