# PostgreSQL with its client, and Patroni, which keeps a leader among its members.
build_postgres() {
  local root=$tmp/postgres
  # Compiling queries takes LLVM, which is larger than all the rest: `jit` is off in the examples.
  without="libllvm14 libz3-4"
  system postgres postgresql-15 postgresql-client-15 tzdata python3.11 python3.11-minimal libpython3.11-stdlib patroni \
    python3-cdiff python3-click python3-colorama python3-dateutil python3-dnspython python3-etcd python3-pkg-resources \
    python3-prettytable python3-psutil python3-psycopg2 python3-six python3-urllib3 python3-wcwidth python3-yaml
  user "$root" postgres 999
  ln -sf python3.11 "$root/usr/bin/python3"
  rm -rf "$root"/usr/lib/postgresql/15/lib/{bitcode,llvmjit*} "$root"/usr/share/postgresql/15/man \
    "$root"/usr/lib/python3.11/{test,idlelib,lib2to3,ensurepip,turtledemo,tkinter,pydoc_data}
  mkdir -p "$root/run/postgresql"
  oci postgres "$root" '{"Env":["PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin","LC_ALL=C"],"Cmd":["patroni"],"ExposedPorts":{"5432/tcp":{},"8008/tcp":{}},"WorkingDir":"/"}' \
    berth.local/postgres:15
}
