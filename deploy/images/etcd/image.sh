# etcd with its client. Two names, so that a set can be rolled from one to the other.
build_etcd() {
  system etcd etcd-server etcd-client
  rm -rf "$tmp/etcd/usr/share/bash-completion"
  oci etcd "$tmp/etcd" '{"Env":["PATH=/usr/local/bin:/usr/bin:/bin"],"Cmd":["etcd"],"ExposedPorts":{"2379/tcp":{},"2380/tcp":{}},"WorkingDir":"/"}' \
    berth.local/etcd:3.4 berth.local/etcd:3.4-1
}
