//! MariaDB: the primary acknowledges what it has on its disk, and the replica has all of it a little later.

use super::{Application, Commands};

/// The example.
pub const MARIADB: Application = Application {
    name: "mariadb",
    needs: &[],
    images: &["mariadb"],
    set: "mariadb",
    members: 2,
    selector: "app=mariadb",
    client_image: "berth.local/mariadb:10.11",
    commands: Commands {
        prepare: r"
            timeout 10 mariadb --no-defaults -h mariadb-primary -u app -papp-secret app \
              -e 'CREATE TABLE IF NOT EXISTS ledger (n INT PRIMARY KEY)'",
        write: r#"
            for n in $(seq $1 $2); do
              timeout 10 mariadb --no-defaults --connect-timeout=3 -h mariadb-primary -u app -papp-secret app \
                -e "INSERT INTO ledger VALUES ($n)" || exit 1
              echo $n
            done"#,
        read: r"
            timeout 20 mariadb --no-defaults -h mariadb-primary -u app -papp-secret app -N -B \
              -e 'SELECT n FROM ledger'",
        read_member: r"
            timeout 20 mariadb --no-defaults -h mariadb-$1.mariadb -u app -papp-secret app -N -B \
              -e 'SELECT n FROM ledger'",
    },
    replicated: true,
};
