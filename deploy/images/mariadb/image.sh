# MariaDB with its client and what makes a new database.
build_mariadb() {
  local root=$tmp/mariadb language
  system mariadb mariadb-server-core mariadb-client-core mariadb-common
  user "$root" mysql 999
  for language in "$root"/usr/share/mysql/*/errmsg.sys; do
    [[ $language == */english/* ]] || rm -r "${language%/*}"
  done
  rm -rf "$root"/usr/share/{applications,icons} "$root"/usr/share/mysql/mini-benchmark "$root"/etc/mysql/mariadb.conf.d
  mkdir -p "$root"/{run/mysqld,var/lib/mysql,etc/mysql/pod}
  oci mariadb "$root" '{"Env":["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["mariadbd"],"ExposedPorts":{"3306/tcp":{}},"WorkingDir":"/"}' \
    berth.local/mariadb:10.11
}
