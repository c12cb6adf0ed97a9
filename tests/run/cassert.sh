#!/bin/bash
# cassert.sh: what `make test-cassert` runs.
#
# Builds the server once more, from Debian's source package, with assertions, and with freed memory overwritten and new
# memory filled with garbage; then runs the suites regress, isolation, original and tap, or those of ONLY, on it.
# The server is kept in ~/.cache/mq-test/cassert-VERSION, and tells valgrind of its allocations, for `make valgrind`. A
# build that was interrupted goes on where it was. Debian removes older source packages: where that of the installed version is
# gone, the newest of the same major version that apt knows is taken. Where there is none the run says so, and skips.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
cd /
umask 022
. "$HERE/tests/run/progress.sh"
. "$HERE/tests/run/deps.sh"

skip() {
  printf '\ncassert: skipped, since %s\n\n0 passed, 0 failed, 1 skipped\n' "$1"
  exit 0
}

cache=${XDG_CACHE_HOME:-$HOME/.cache}/mq-test
build=$cache/cassert-build # the source, until the server is installed

# apt TOOL ARGUMENT... with lists of source packages of its own: those of the machine are left alone.
apt() {
  "$1" -o Dir::State::Lists="$build/lists" -o Dir::Etc::SourceList="$build/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::Cache="$build/cache" -o APT::Sandbox::User=root "${@:2}"
}

# The source of the installed version, or else of the newest that can be had, in $build/pgsql.
download() {
  local installed version
  rm -rf "$build"
  mkdir -p "$build/lists/partial" "$build/cache/archives/partial" "$build/package"
  installed=$(dpkg-query -W -f '${source:Version}' "postgresql-$major")
  apt-get indextargets --format 'deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' | sort -u >"$build/sources.list"
  apt apt-get -q update || true
  for version in "$installed" $(apt apt-cache showsrc "postgresql-$major" | sed -n 's/^Version: //p' | sort -rVu); do
    if (cd "$build/package" && apt apt-get -q -y source --download-only "postgresql-$major=$version"); then
      dpkg-source --no-check -x "$build"/package/*.dsc "$build/unpacked" && mv "$build/unpacked" "$build/pgsql"
      return
    fi
  done
  return 1
}

# The server into $1, with what the tests use of contrib. Programs find libpq where the system has it. Assertions bring
# CLOBBER_FREED_MEMORY and MEMORY_CONTEXT_CHECKING with them. Below another make it would not make its headers: no MAKELEVEL.
compile() {
  local part make=(env -u MAKELEVEL make -s -j"$(nproc)")
  cd "$build/pgsql" || return
  if [ ! -e "$build/configured" ]; then
    ./configure --quiet --prefix="$1" --enable-cassert --enable-debug --enable-tap-tests --without-icu --disable-rpath \
      --with-uuid=e2fs --with-system-tzdata=/usr/share/zoneinfo CFLAGS='-O1 -g' \
      CPPFLAGS='-DRANDOMIZE_ALLOCATED_MEMORY -DUSE_VALGRIND' || return
    touch "$build/configured"
  fi
  rm -rf "$1"
  "${make[@]}" && "${make[@]}" install || return
  for part in src/test/isolation src/test/regress contrib/amcheck contrib/pg_stat_statements contrib/uuid-ossp; do
    "${make[@]}" -C "$part" install || return
  done
  cp src/tools/valgrind.supp "$1/share/"
}

PG_CONFIG=${PG_CONFIG:-}
deps_install build cassert
major=$("$PG_CONFIG" --bindir | sed -n 's,^/usr/lib/postgresql/\([0-9]*\)/bin$,\1,p')
[ -n "$major" ] || skip "$PG_CONFIG is not of a Debian package, of whose source a server could be built"
kept=("$cache/cassert-$major".*/pgsql/bin/pg_config)
if [ ! -x "${kept[-1]}" ]; then
  mkdir -p "$cache"
  exec 9>"$cache/cassert.lock" # two runs that build at once would share the directory
  flock 9
  if [ ! -d "$build/pgsql" ]; then
    for tool in apt-get dpkg-source; do
      command -v "$tool" >/dev/null || skip "$tool is not installed"
    done
    say "Downloading the source of PostgreSQL $major"
    download >"$cache/cassert.log" 2>&1 || {
      tail -n 5 "$cache/cassert.log"
      skip "no source package of postgresql-$major can be downloaded"
    }
  fi
  version=$(sed -n "s/^PACKAGE_VERSION='\(.*\)'/\1/p" "$build/pgsql/configure")
  say "Building PostgreSQL $version with assertions"
  if ! (compile "$build/installed-pgsql") >"$cache/cassert.log" 2>&1; then
    tail -n 30 "$cache/cassert.log"
    printf '\nThe server could not be built.\n\n0 passed, 1 failed\n'
    exit 1
  fi
  # Its programs look for their files beside themselves.
  mkdir -p "$cache/cassert-$version"
  mv "$build/installed-pgsql" "$cache/cassert-$version/pgsql"
  rm -rf "$build"
  kept=("$cache/cassert-$version/pgsql/bin/pg_config")
  exec 9>&-
fi
PG_CONFIG=${kept[-1]}
export PG_CONFIG DEBUG=1 ONLY="${ONLY:-regress isolation original tap}"
exec "$HERE/tests/run/test.sh"
