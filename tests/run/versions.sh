#!/bin/bash
# versions.sh: what `make test-versions` runs.
#
# For each of VERSIONS it makes the Debian release that carries that PostgreSQL, with debootstrap, in a directory of its
# own, and there runs `make test` from a copy of this tree, as root in mount, process and IPC namespaces of its own: so what
# a bare machine of that release would do. Everything is gone afterwards, but for what VERSIONS_CACHE=directory keeps: the
# releases with their packages, and what the compiler made. ONLY and TESTS are those of `make test`. Ends with a table,
# and with the line 'N passed, N failed[, N skipped]'.
set -uo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
. "$HERE/tests/run/progress.sh"

# The release of Debian that carries each version. None carries 14 or 16.
declare -A RELEASES=([15]=bookworm [17]=trixie [18]=sid)
MIRROR=${MIRROR:-http://deb.debian.org/debian}
read -ra versions <<<"${VERSIONS:-15 17 18}"
for version in "${versions[@]}"; do
  [ -n "${RELEASES[$version]:-}" ] || die "No release of Debian carries PostgreSQL $version: VERSIONS may name 15, 17 and 18."
done

missing=''
if [ "$EUID" -ne 0 ]; then
  missing='it needs root'
elif ! command -v debootstrap >/dev/null; then
  missing='debootstrap is not installed'
elif ! unshare -m -p -i -f --kill-child true 2>/dev/null; then
  missing='no namespaces can be made here'
fi
if [ -n "$missing" ]; then
  # Not a success: nothing was tested.
  printf 'The versions are not tested: %s.\n\n0 passed, 0 failed, %d skipped\n' "$missing" "${#versions[@]}"
  exit 1
fi

WORK=$(mktemp -d "${MQ_TMP:-/tmp}/mq-versions.XXXXXX")
RUNNING=''
# What is mounted below a release is mounted in a namespace that ends with its processes, so this removes files only.
trap '[ -z "$RUNNING" ] || kill -KILL "$RUNNING" 2>/dev/null; sleep 1; rm -rf --one-file-system "$WORK"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
CACHE=${VERSIONS_CACHE:+$(readlink -m "$VERSIONS_CACHE")}
mkdir -p "${CACHE:-$WORK}" "$WORK/log"

# logged LOG FUNCTION...: shows the output of the function as it comes, and keeps it in LOG. A signal interrupts it, and
# what it began ends with it.
logged() {
  local log=$1 rc=0
  shift
  : >"$log"
  "$@" >"$log" 2>&1 </dev/null &
  RUNNING=$!
  tail -s 0.2 -n +1 -f --pid="$RUNNING" "$log" &
  wait "$RUNNING" || rc=$?
  RUNNING=''
  wait $! || true
  return "$rc"
}

# apart COMMAND...: in mount, process and IPC namespaces of its own, which end with the shell that called it.
apart() { setpriv --pdeathsig KILL unshare -m -p -i -f --kill-child --mount-proc "$@"; }

# inside ROOT COMMAND...: in the release, as a machine of its own would have it. All processes end with the command.
inside() {
  local root=$1 name proxies=()
  shift
  for name in http_proxy https_proxy no_proxy; do [ -z "${!name:-}" ] || proxies+=("$name=${!name}"); done
  # shellcheck disable=SC2016 # expanded by the inner shell
  apart bash -ec '
    root=$1
    shift
    mount --make-rprivate /
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for node in null zero full random urandom tty; do
      : >"$root/dev/$node"
      mount --bind "/dev/$node" "$root/dev/$node"
    done
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    for fd in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${fd%:*}" "$root/dev/${fd#*:}"; done
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    exec chroot "$root" "$@"' inside "$root" \
    env -i HOME=/root PATH=/usr/lib/ccache:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TERM=dumb DEBIAN_FRONTEND=noninteractive \
    CCACHE_DIR=/var/cache/mq-ccache "${proxies[@]}" "$@"
}

# bootstrap RELEASE ROOT: the release, with what it takes to run make. `make test` installs the rest itself.
bootstrap() {
  local release=$1 root=$2 keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  [ -e "$keyring" ] && keyring=(--keyring="$keyring") || keyring=()
  rm -rf --one-file-system "$root" &&
    apart debootstrap --variant=minbase "${keyring[@]}" --include=ca-certificates "$release" "$root" "$MIRROR" &&
    # The manuals are not read here, and no service is to start.
    printf '%s\n' force-unsafe-io 'path-exclude /usr/share/man/*' 'path-exclude /usr/share/doc/*' >"$root/etc/dpkg/dpkg.cfg.d/mq" &&
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" && chmod 755 "$root/usr/sbin/policy-rc.d" &&
    # A mirror may be a snapshot, which is older than the release says that it may be.
    printf 'Acquire::Check-Valid-Until "false";\n' >"$root/etc/apt/apt.conf.d/mq" &&
    # Files that the machine's own names servers with may be links.
    cat /etc/resolv.conf >"$root/etc/resolv.conf" && cat /etc/hosts >"$root/etc/hosts" &&
    inside "$root" apt-get -q -y update &&
    inside "$root" apt-get -q -y -o Dpkg::Use-Pty=0 install --no-install-recommends make git ccache procps &&
    : >"$root/mq-is-complete"
}

# copy ROOT: the tree's files as git lists them, or all of an unpacked release, in /root/mq of the release. What was built
# there stays, and so do the files' times: what did not change since a run before is not compiled again.
copy() {
  local root=$1 to=$1/root/mq original=${MQ_ORIGINAL:-$HERE/../shared/reference/original-schema.txt}
  mkdir -p "$to/bgworker" || return
  find "$to" -mindepth 1 -maxdepth 1 ! -name build ! -name bgworker ! -name mq.so -exec rm -rf {} + &&
    find "$to/bgworker" \( -name '*.[ch]' -o -name '*.[ch]pp' \) -delete || return
  tree_files | tar -C "$HERE" --no-recursion --null -T - -cf - | tar -C "$to" --no-same-owner -xf - || return
  rm -f "$root/root/original-schema.txt"
  [ ! -f "$original" ] || cp "$original" "$root/root/original-schema.txt"
}

tree_files() {
  local file
  if [ -e "$HERE/.git" ] && command -v git >/dev/null; then
    git -c safe.directory="$HERE" -C "$HERE" ls-files -z --cached --others --exclude-standard
  else
    (cd "$HERE" && find . -type f ! -path './build/*' ! -name '*.o' ! -name '*.d' ! -name '*.so' -print0)
  fi | while IFS= read -r -d '' file; do [ ! -e "$HERE/$file" ] || printf '%s\0' "$file"; done
}

# rows VERSION LOG: the closing lines of its suites, as rows of the table.
rows() {
  sed -nE 's/^-- ([a-z]+): ([0-9]+) passed, ([0-9]+) failed(, ([0-9]+) skipped)?, ([0-9]+) s$/\1 \2 \3 \5 \6/p' "$2" |
    while read -r suite passed failed rest; do
      case $rest in *' '*) ;; *) rest="0 $rest" ;; esac
      echo "$1 $suite $passed $failed $rest"
    done
}

for version in "${versions[@]}"; do
  release=${RELEASES[$version]} root=${CACHE:-$WORK}/$release log=$WORK/log/$version
  exec {lock}>"$root.lock"
  flock "$lock"
  say "PostgreSQL $version, on Debian $release"
  : >"$log"
  if [ ! -e "$root/mq-is-complete" ] && ! logged "$log.bootstrap" bootstrap "$release" "$root"; then
    echo "-- debootstrap: 0 passed, 1 failed, $SECONDS s" | tee -a "$log"
  elif ! copy "$root"; then
    echo "-- copy: 0 passed, 1 failed, $SECONDS s" | tee -a "$log"
  else
    # The newest server of the release is the one that `make test` takes, and it says which that is.
    logged "$log" inside "$root" env MQ_ORIGINAL=/root/original-schema.txt make -C /root/mq --no-print-directory test \
      ONLY="${ONLY:-}" TESTS="${TESTS:-}" || true
    grep -q "^== .*Building for PostgreSQL ${version}[. ]" "$log" || echo "-- server: 0 passed, 1 failed, 0 s" | tee -a "$log"
    # A run that ended before its closing line failed, whatever its suites say.
    grep -qE '^[0-9]+ passed, [0-9]+ failed' "$log" || echo "-- run: 0 passed, 1 failed, 0 s" | tee -a "$log"
    [ -n "$CACHE" ] || rm -rf --one-file-system "$root"
  fi
  exec {lock}>&-
done

printf '\n%-8s  %-12s %8s %8s %8s %8s\n' version suite passed failed skipped seconds
for version in "${versions[@]}"; do rows "$version" "$WORK/log/$version"; done | tee "$WORK/table" |
  while read -r version suite numbers; do
    # shellcheck disable=SC2086 # words
    printf '%-8s  %-12s %8d %8d %8d %8d\n' "$version" "$suite" $numbers
  done
for version in "${versions[@]}"; do
  sed -n '/^Failed:$/,/^$/p' "$WORK/log/$version" | sed '1d;/^$/d' | sed "s/^/$version: /"
  grep -E '^[a-z]+: ([0-9]+ )?skipped, since ' "$WORK/log/$version" | sed "s/^/$version: /"
done
awk '{ passed += $3; failed += $4; skipped += $5 }
  END { printf "\n%d passed, %d failed%s\n", passed, failed, skipped ? ", " skipped " skipped" : ""; exit failed > 0 || passed == 0 }' "$WORK/table"
