# Redis with its client.
build_redis() {
  system redis redis-server redis-tools
  user "$tmp/redis" redis 999
  rm -rf "$tmp/redis/etc/redis" "$tmp/redis/usr/share/bash-completion"
  oci redis "$tmp/redis" '{"Env":["PATH=/usr/local/bin:/usr/bin:/bin"],"Cmd":["redis-server"],"ExposedPorts":{"6379/tcp":{},"16379/tcp":{}},"WorkingDir":"/"}' \
    berth.local/redis:7.0
}
