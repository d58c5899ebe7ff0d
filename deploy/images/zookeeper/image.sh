# ZooKeeper on a Java runtime without a desktop, and kazoo, a client in Python.
build_zookeeper() {
  local root=$tmp/zookeeper
  # What Java draws and prints with, and the web server of ZooKeeper's own admin page, which is off.
  without='libcups2 libfontconfig1 liblcms2-2 libjpeg62-turbo libnss3 libasound2 libfreetype6 libharfbuzz0b libpcsclite1
    libjetty9-java libjetty9-extra-java libfindbugs-annotations-java libguava-java libtomcat9-java libservlet-api-java'
  system zookeeper openjdk-17-jre-headless libzookeeper-java \
    python3-minimal python3.11-minimal libpython3.11-stdlib python3-kazoo python3-six
  rm -rf "$root"/usr/share/{maven-repo,bash-completion,applications,binfmts,icons,python3,doc-base,application-registry}
  ln -s ../lib/jvm/java-17-openjdk-$(dpkg --print-architecture)/bin/java "$root/usr/bin/java"
  user "$root" zookeeper 1000
  install -m 0755 "$here"/zookeeper/bin/* "$root/usr/local/bin/"
  oci zookeeper "$root" '{"Env":["PATH=/usr/local/bin:/usr/bin:/bin","PYTHONPYCACHEPREFIX=/tmp/pycache"],"Cmd":["start-zookeeper"],"ExposedPorts":{"2181/tcp":{},"2888/tcp":{},"3888/tcp":{}},"WorkingDir":"/"}' \
    berth.local/zookeeper:3.8
}
