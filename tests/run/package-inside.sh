#!/bin/bash
# package-inside.sh DIRECTORY CACHE: called as root by tests/run/package.sh, in mount and process namespaces of its own, with
# the archive mq-VERSION.zip (and mq-0.1.0.tar, where there is one) in DIRECTORY.
#
# Makes an overlay over the file system, whose changes are in memory, and does the rest inside it: everything that runs there
# sees a machine on which packages can be installed and removed, and the machine itself sees nothing of it. All processes end
# with this one. Prints a line 'ok' or 'not ok' for each step.
set -uo pipefail
directory=$1 cache=$2

if [ "${3:-}" != inside ]; then
  set -e
  mkdir -p "$directory/memory" "$directory/build"
  mount --make-rprivate /
  mount -t tmpfs -o size=80%,mode=755 tmpfs "$directory/memory"
  cd "$directory/memory"
  mkdir upper work root
  mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
  mount --rbind /dev root/dev
  mount -t proc proc root/proc
  mount --rbind /sys root/sys
  mount -t tmpfs tmpfs root/run
  mount -t tmpfs -o mode=1777 tmpfs root/tmp
  mkdir -p root/build root/script root/run/lock
  mount --bind "$directory/build" root/build
  mount --bind "$(dirname "$0")" root/script
  mount --bind "$cache" root/var/cache/apt/archives
  # What names servers may be a link into /run.
  if [ -L /etc/resolv.conf ]; then
    rm root/etc/resolv.conf
    cat /etc/resolv.conf >root/etc/resolv.conf
  fi
  rm -f root/etc/apt/apt.conf.d/docker-clean
  cp "$directory"/mq-* root/build/
  # No service is started or stopped in there, though their scripts ask for it.
  printf '#!/bin/sh\nexit 101\n' >root/usr/sbin/policy-rc.d
  chmod 755 root/usr/sbin/policy-rc.d
  proxies=()
  for name in http_proxy https_proxy no_proxy; do [ -z "${!name:-}" ] || proxies+=("$name=${!name}"); done
  exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb DEBIAN_FRONTEND=noninteractive "${proxies[@]}" \
    chroot root bash /script/package-inside.sh /build "$cache" inside
fi

# --- inside -----------------------------------------------------------------------------------

cd /build
failed=0
version=$(ls mq-*.zip | sed -n 's/^mq-\(.*\)\.zip$/\1/p')
architecture=$(dpkg --print-architecture)
umask 022

# check WHAT COMMAND...: prints the end of the command's output where it fails.
check() {
  local what=$1 begun=$SECONDS
  shift
  if "$@" >/build/log 2>&1 </dev/null; then
    echo "ok - $what ($((SECONDS - begun)) s)"
  else
    failed=1
    echo "not ok - $what ($((SECONDS - begun)) s)"
    tail -n "${SHOW:-60}" /build/log | sed 's/^/# /'
    return 1
  fi
}
apt() {
  apt-get -q -y -o APT::Keep-Downloaded-Packages=true -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-unsafe-io "$@"
}
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups env -C / HOME=/var/lib/postgresql "$@"; }
sql() { as_postgres psql -X -At -q -v ON_ERROR_STOP=1 -p 54329 -d app "$@"; }

tools() {
  mkdir -p /etc/postgresql-common/createcluster.d
  echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/mq.conf
  # Nobody reads manuals here.
  rm -f /var/lib/man-db/auto-update
  apt update && apt install --no-install-recommends build-essential debhelper lintian autopkgtest unzip zip
}

# unpack FOLDER: the archive, in /build/FOLDER.
unpack() {
  rm -rf "$1" && mkdir -p "$1" && unzip -q "mq-$version.zip" -d "$1"
}

# build FOLDER KIND [VARIABLE=VALUE...]: the package, from the sources below the folder. KIND is -b or -F.
build() {
  local folder=$1 kind=$2
  shift 2
  (cd "$folder"/mq-* && env "$@" dpkg-buildpackage -us -uc "$kind")
}

build_dependencies() {
  apt build-dep --no-install-recommends "./first/mq-$version"
}

lintian_is_content() {
  lintian --allow-root --fail-on error,warning --display-info --show-overrides first/*.changes
}

# What the build left is what it is in another folder, at another time of day, in another language and by another umask.
same_files() {
  local file count=0 bad=0
  for file in first/*.deb first/*.tar.* first/*.dsc; do
    cmp "$file" "second/deeper/${file##*/}" || bad=1
    count=$((count + 1))
  done
  # The package, its debugging symbols, the sources and what describes them.
  [ "$count" -eq 4 ] && return "$bad"
  echo "$count files"
  return 1
}

contents() {
  local package lists wanted bill=/build/bill
  package=$(ls first/postgresql-*-mq_*.deb) || return
  lists=$(dpkg-deb -c "$package" | awk '{ print $6 }')
  for wanted in /lib/mq.so /extension/mq.control "/extension/mq--$version.sql" /README.md.gz /CHANGELOG.md.gz /copyright /changelog.gz /mq.cdx.json.gz \
    /examples/consumer.py /examples/monitoring/alerts.yml /examples/docker/compose.yaml /docs/reference.md.gz; do
    grep -q -- "$wanted\$" <<<"$lists" || { echo "the package lacks $wanted:"; echo "$lists"; return 1; }
  done
  dpkg-deb -f "$package" Depends | tee /dev/stderr | grep -q "postgresql-$server" && dpkg-deb -x "$package" unpacked &&
    gunzip -c unpacked/usr/share/doc/"postgresql-$server-mq"/mq.cdx.json.gz >"$bill" &&
    bill_is_complete "$bill" "$(dpkg-deb -f "$package" Depends)"
}

# Each package of Depends that has a library is in the bill of materials as linked, and the sources of the headers that are
# more than declarations as compiled in.
bill_is_complete() {
  python3 - "$@" <<'EOF'
import json, re, sys
bill, depends = sys.argv[1:]
bill = json.load(open(bill))
by_how = {}
for c in bill["components"]:
    properties = {p["name"]: p["value"] for p in c["properties"]}
    by_how.setdefault(properties["mq:how"], set()).update((c["name"], properties["mq:source"]))
libraries = {re.split(r"[ :(]", entry.strip())[0] for entry in depends.split(",")}
libraries = {name for name in libraries if name.startswith("lib")}
assert libraries and libraries <= by_how["linked dynamically"], (libraries, by_how)
assert {"fmtlib", "xxhash"} <= by_how["headers compiled in"], by_how
EOF
}

old_package() {
  rm -rf base && mkdir base && tar -C base -xf mq-0.1.0.tar && cp -R "first/mq-$version/debian" base/mq-0.1.0/ &&
    # Its changelog begins with the entry of 0.1.0.
    sed -i '/^postgresql-mq (0\.1\.0)/,$!d' base/mq-0.1.0/debian/changelog && build base -b
}

# All files of the system that are not the package manager's own, logs or temporary.
files() { find /etc /usr /var /opt -xdev \( -path '/var/cache/*' -o -path '/var/log/*' -o -path '/var/tmp/*' -o -path '/var/lib/dpkg/*' -o -path '/var/lib/apt/*' \) -prune -o -print | sort; }

cluster() {
  pg_createcluster "$server" mqtest -p 54329 -- --auth=trust --no-sync --encoding=UTF8 &&
    printf '%s\n' "shared_preload_libraries = 'mq'" 'fsync = off' >>"/etc/postgresql/$server/mqtest/postgresql.conf" &&
    pg_ctlcluster "$server" mqtest start && as_postgres createdb -p 54329 app
}

# gives QUERY VALUE: within a minute.
gives() {
  local tries got
  for ((tries = 0; tries < 300; tries++)); do
    got=$(sql -c "$1") && [ "$got" = "$2" ] && return
    sleep 0.2
  done
  echo "$1: $got, not $2"
  return 1
}

extension_version() { sql -c "SELECT extversion FROM pg_extension WHERE extname = 'mq'"; }

# Two messages, of which one is handled and the other waits.
install_old() {
  apt install ./base/postgresql-*-mq_0.1.0_"$architecture".deb && cluster && sql -c "
    CREATE EXTENSION mq;
    CREATE TABLE handled (n int);
    CREATE FUNCTION handle(payload jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO handled VALUES ((payload ->> ''n'')::int)';
    SELECT mq_register_handler('old', 'handle(jsonb)');
    SELECT mq_send('old', '{\"n\": 1}')" && gives 'SELECT count(*) FROM handled' 1 &&
    sql -c "SELECT mq_pause('old')" && sql -c "SELECT mq_send('old', '{\"n\": 2}')" && [ "$(extension_version)" = 0.1.0 ]
}

upgrade() {
  apt install ./first/postgresql-*-mq_"${version}"_"$architecture".deb && pg_ctlcluster "$server" mqtest restart &&
    [ "$(extension_version)" = 0.1.0 ] && sql -c 'ALTER EXTENSION mq UPDATE' && [ "$(extension_version)" = "$version" ] &&
    sql -c "SELECT mq_resume('old')" && gives "SELECT string_agg(n::text, ' ' ORDER BY n) FROM handled" '1 2'
}

# A server without the old package: what a new user does.
install_new() {
  apt install ./first/postgresql-*-mq_"${version}"_"$architecture".deb && cluster &&
    sql -c "CREATE EXTENSION mq; SELECT mq_send('c')" && [ "$(extension_version)" = "$version" ]
}

# examples/docker cannot be built without Docker and its registry. Its server is of this version, and its check of health is
# well with this cluster, and no longer when the extension is gone.
docker_example() {
  local example=first/mq-$version/examples/docker health
  grep -q "^FROM postgres:$server-" "$example/Dockerfile" && grep -q "postgresql-$server-mq_" "$example/Dockerfile" || {
    echo "the Dockerfile is not for PostgreSQL $server"
    return 1
  }
  health=$(sed -n 's/^ *test: //p' "$example/compose.yaml") && [ -n "$health" ] &&
    as_postgres env PGPORT=54329 sh -c "$health" && sql -c 'DROP EXTENSION mq' && ! as_postgres env PGPORT=54329 sh -c "$health"
}

purged() {
  pg_dropcluster --stop "$server" mqtest && apt purge "postgresql-$server-mq" && files >after &&
    { ! dpkg-query -W -f '${Status}\n' "postgresql-$server-mq" 2>/dev/null | grep -v 'not-installed'; } && diff before after
}

installchecks() {
  autopkgtest --output-dir=/build/autopkgtest first/*.changes -- null
}

echo "in a copy of this machine's file system, which is gone afterwards: $(sed -n 's/^PRETTY_NAME="\(.*\)"/\1/p' /etc/os-release), $architecture"
check 'the tools are installed' tools || exit 1
check 'the archive is unpacked' unpack first || exit 1
check 'what debian/control asks for can be installed' build_dependencies || exit 1
server=$(cd "first/mq-$version" && pg_buildext supported-versions | tail -n 1)
check 'dpkg-buildpackage builds sources and package from the archive' build first -F || exit 1
check 'the package has what it should, and a bill of what is in it' contents
SHOW=200 check 'lintian has no errors or warnings' lintian_is_content
check 'the archive is unpacked elsewhere' unpack second/deeper
check 'it is built once more' bash -c "umask 027; $(declare -f build); build second/deeper -F TZ=Asia/Tokyo LC_ALL=C"
check 'the same files come of it' same_files
files >before
if [ -e mq-0.1.0.tar ]; then
  check 'the package of 0.1.0 is built' old_package
  check 'it is installed, and handles messages' install_old
  check 'it is upgraded with its database: messages that wait are handled' upgrade
  check 'it is purged, and leaves no file' purged
else
  echo 'ok - it is upgraded from 0.1.0 # SKIP the commit of 0.1.0 is not in this repository'
fi
check 'it is installed without an older one' install_new
check 'examples/docker is for this server, and sees whether it is well' docker_example
check 'it is purged, and leaves no file' purged
SHOW=200 check 'autopkgtest: installcheck against the installed package' installchecks
exit "$failed"
