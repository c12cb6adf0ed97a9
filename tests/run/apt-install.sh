#!/bin/bash
# apt-install.sh PACKAGE...: called as root, in a session of its own, by deps.sh.
#
# Installs the packages without a question, and shows how far it is; what apt says is shown only if it fails.
# PostgreSQL's packages would create and start a cluster 'main'; a configuration file forbids
# that while this script runs and is gone afterwards, also if whoever called this script is
# killed meanwhile: nothing that is said here can end it.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
. "$here/progress.sh"
. "$here/deps.sh"

directory=/etc/postgresql-common/createcluster.d
dropin=$directory/zz-mq-no-main-cluster.conf
tmp=$(mktemp -d)

# tell COMMAND...: in a process of its own, which a closed terminal or pipe may end.
tell() { ("$@") 2>/dev/null || true; }

# A file, not a pipe, takes apt's status: what a package starts may inherit it and stay.
apt() {
  local what=$1 pid rc=0 kind percent
  shift
  DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 apt-get -q -y -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Use-Pty=0 -o APT::Status-Fd=3 "$@" </dev/null >"$tmp/log" 2>&1 3>"$tmp/status" &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    IFS=: read -r kind _ percent _ < <(tail -n 1 "$tmp/status") || true
    case ${kind:-} in
      dlstatus) kind='downloaded' ;;
      pmstatus) kind='unpacked and set up' ;;
      *) kind='' ;;
    esac
    tell progress "$what${kind:+: ${percent%%.*} % $kind}, $(clock)"
    if [ ! -t 1 ] && [ $((SECONDS - PROGRESS_AT)) -ge 15 ]; then PROGRESS_AT=$SECONDS; fi
    sleep 0.5
  done
  wait "$pid" || rc=$?
  if [ "$rc" -ne 0 ]; then
    tell progress_end "apt-get $* failed:"
    tell cat "$tmp/log"
    exit "$rc"
  fi
}

forbid_cluster() {
  [ -d "$directory" ] || made_directory=1
  mkdir -p "$directory"
  echo 'create_main_cluster = false' >"$dropin"
}

allow_cluster() {
  rm -rf "$tmp"
  rm -f "$dropin"
  [ -z "${made_directory:-}" ] || rmdir --ignore-fail-on-non-empty "$directory"
}

trap allow_cluster EXIT
# A file that is there already was left by a machine that went down in the middle of this.
if [ -e "$dropin" ]; then
  made_directory=1
  DEBIAN_FRONTEND=noninteractive dpkg --configure -a </dev/null
fi
apt 'Reading the package lists' update
tell progress_end "$(deps_figures "$@")"
# postgresql-common first: the file has its place there, and a server reads it when installed.
if [[ " $* " == *" postgresql-"* ]]; then
  apt 'Installing' install --no-install-recommends postgresql-common
  forbid_cluster
fi
apt 'Installing' install --no-install-recommends "$@"
tell progress_end "Installed, $(clock)"
