#!/bin/bash
# apt-install.sh PACKAGE...: called as root by deps.sh.
#
# Installs the packages without a question. PostgreSQL's packages would create and start
# a cluster 'main'; a configuration file forbids that while this script runs and is
# gone afterwards. It is a process of its own, so it tidies up even if its caller is killed.
set -euo pipefail

directory=/etc/postgresql-common/createcluster.d
dropin=$directory/zz-mq-no-main-cluster.conf
made=()

cleanup() {
  rm -f "$dropin"
  if [ "${#made[@]}" -gt 0 ]; then
    rmdir --ignore-fail-on-non-empty "${made[@]}" 2>/dev/null || true
  fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

apt() {
  DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 apt-get -q -y -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Use-Pty=0 "$@" </dev/null
}

apt update
# postgresql-common first: it owns the directory, and reads it when a server is installed.
if [[ " $* " == *" postgresql-"* ]]; then
  apt install --no-install-recommends postgresql-common
  if [ ! -d "$directory" ]; then
    mkdir -p "$directory"
    made+=("$directory")
  fi
  echo 'create_main_cluster = false' >"$dropin"
fi
apt install --no-install-recommends "$@"
