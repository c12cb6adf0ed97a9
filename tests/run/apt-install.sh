#!/bin/bash
# apt-install.sh PACKAGE...: called as root, in a session of its own, by deps.sh.
#
# Installs the packages without a question. PostgreSQL's packages would create and start
# a cluster 'main'; a configuration file forbids that while this script runs and is gone
# afterwards, also if whoever called this script is killed meanwhile.
set -euo pipefail

directory=/etc/postgresql-common/createcluster.d
dropin=$directory/zz-mq-no-main-cluster.conf

apt() {
  DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 apt-get -q -y -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Use-Pty=0 "$@" </dev/null
}

forbid_cluster() {
  [ -d "$directory" ] || made_directory=1
  mkdir -p "$directory"
  echo 'create_main_cluster = false' >"$dropin"
}

allow_cluster() {
  rm -f "$dropin"
  [ -z "${made_directory:-}" ] || rmdir --ignore-fail-on-non-empty "$directory"
}

trap allow_cluster EXIT
# A file that is there already was left by a machine that went down in the middle of this.
if [ -e "$dropin" ]; then
  made_directory=1
  DEBIAN_FRONTEND=noninteractive dpkg --configure -a </dev/null
fi
apt update
# postgresql-common first: the file has its place there, and a server reads it when installed.
if [[ " $* " == *" postgresql-"* ]]; then
  apt install --no-install-recommends postgresql-common
  forbid_cluster
fi
apt install --no-install-recommends "$@"
