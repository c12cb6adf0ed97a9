#!/bin/bash
# run.sh: what `make bench` runs. It makes the private installations that the chosen workloads need, and leaves the
# rest to bench.py.
#
#   make bench                       all workloads, five rounds each; writes docs/benchmarks.md
#   make bench WORKLOAD="W1 W7"      some of them: W1 to W22, layouts, scaling; their results replace those of before
#   make bench SKIP="W8 W10"         all but these
#   make bench QUICK=1               one round, smaller; writes below build/bench
#   make bench ROUNDS=9              more rounds
#   make bench ORIGINAL=schema.txt   the schema that mq replaces, to run beside it
#   make bench BASE=commit           the release before, to run beside it (default: 0.1.0)
#
# All sides run in one private server of the system's PostgreSQL, by turns; mq's release before in one beside it. The
# machine should be idle otherwise. Peers are installed from their package registries into
# ${XDG_CACHE_HOME:-$HOME/.cache}/mq-bench, where the build of the release before is kept too; nothing of the system's is
# changed, but packages that mq needs to be built are installed.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
SOURCE=$HERE
BENCH=$HERE/tests/bench
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/mq-bench
CALLER=$PWD
cd /
umask 022
. "$HERE/tests/run/workdir.sh"
. "$HERE/tests/run/deps.sh"
. "$HERE/tests/run/server.sh"

export PYTHONDONTWRITEBYTECODE=1
command -v python3 >/dev/null || deps_apt python3
NEEDS=" $(python3 "$BENCH/bench.py" --needs) "
needed() { [[ $NEEDS == *" $1 "* ]]; }

git_here() { git -C "$HERE" -c safe.directory="$HERE" "$@" 2>/dev/null; }

# The commit of mq 0.1.0: the one that is known, or else the last one that has this version.
release_before() {
  local known=df71f3c commit
  if git_here cat-file -e "$known^{commit}"; then echo "$known"; return; fi
  for commit in $(git_here log --format=%h -- extension/mq.control); do
    if git_here show "$commit:extension/mq.control" | grep -q "default_version = '0.1.0'"; then echo "$commit"; return; fi
  done
}

# Builds the commit in the cache, if it is not there yet, and installs it into a server tree of its own.
base_install() {
  local commit=$1 source
  git_here cat-file -e "$commit^{commit}" || die "BASE=$commit is no commit of this repository."
  source=$CACHE/base-$(git_here rev-parse --short=10 "$commit")-$("$PG_CONFIG" --version | tr -dc '0-9.\n' | head -c 5)
  say "mq of commit $commit"
  if [ ! -d "$source" ]; then
    rm -rf "$source.new"
    mkdir -p "$source.new"
    git_here archive "$commit" | tar -C "$source.new" -xf -
    SOURCE=$source.new build all
    mv "$source.new" "$source"
  fi
  SOURCE=$source
  build all
  server_tree base
  server_install
  SOURCE=$HERE
  export BENCH_BASE_BIN=$PG_BIN
  BENCH_BASE_VERSION="$(sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" "$source/extension/mq.control") ($commit)"
  export BENCH_BASE_VERSION
}

# PgQ's package, unpacked into the tree.
pgq_install() {
  local major package deb
  major=$("$PG_CONFIG" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
  package=postgresql-$major-pgq3
  mkdir -p "$CACHE/debs"
  deb=$(find "$CACHE/debs" -name "${package}_*.deb" | sort | tail -n 1)
  if [ -z "$deb" ]; then
    say "Downloading $package"
    (cd "$CACHE/debs" && apt-get -qq -o APT::Sandbox::User= download "$package") || true
    deb=$(find "$CACHE/debs" -name "${package}_*.deb" | sort | tail -n 1)
  fi
  if [ -z "$deb" ]; then
    echo "$package cannot be had here: without PgQ."
    return
  fi
  dpkg -x "$deb" "$PG_TREE"
  BENCH_PGQ=$(dpkg-deb -f "$deb" Version)
  export BENCH_PGQ
}

# graphile-worker and pg-boss: the newest that run on this Node.js.
npm_install() {
  local packages=(graphile-worker pg-boss)
  if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    echo 'Node.js and npm are not here: without graphile-worker and pg-boss.'
    return
  fi
  if [ "$(node -p 'Number(process.versions.node.split(".")[0])')" -lt 22 ]; then
    packages=(graphile-worker@^0.17 pg-boss@^10)
  fi
  if [ ! -d "$CACHE/npm/node_modules/pg-boss" ] || [ ! -d "$CACHE/npm/node_modules/graphile-worker" ]; then
    say 'Installing graphile-worker and pg-boss'
    mkdir -p "$CACHE/npm"
    (cd "$CACHE/npm" && npm install --no-audit --no-fund --loglevel=error "${packages[@]}") || true
  fi
  if [ -d "$CACHE/npm/node_modules/pg-boss" ]; then
    export BENCH_NPM=$CACHE/npm
  else
    echo 'They cannot be installed: without graphile-worker and pg-boss.'
  fi
}

deps_install build
workdir_create bench
user_dir "$WORK/socket" "$WORK/data"
say "Building for $("$PG_CONFIG" --version)"
build all

if needed base; then
  BASE=${BASE:-$(release_before)}
  if [ -n "$BASE" ]; then
    base_install "$BASE"
  else
    echo 'There is no commit of mq 0.1.0 in this repository: without it. BASE= names another.'
  fi
fi
server_tree tree
server_install
export BENCH_BIN=$PG_BIN
BENCH_VERSION="$(sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" "$HERE/extension/mq.control")"
if BENCH_COMMIT=$(git_here rev-parse --short HEAD); then BENCH_VERSION+=" ($BENCH_COMMIT)"; fi
export BENCH_VERSION
if needed pgq; then pgq_install; fi
if needed npm; then npm_install; fi

ORIGINAL=${ORIGINAL:-$HERE/../shared/reference/original-schema.txt}
[ "${ORIGINAL#/}" != "$ORIGINAL" ] || ORIGINAL=$CALLER/$ORIGINAL
if [ -f "$ORIGINAL" ]; then
  export BENCH_ORIGINAL=$ORIGINAL
elif needed original; then
  echo 'The original schema is not there: without it. ORIGINAL= names its file.'
fi

to=()
if [ -n "${QUICK:-}" ]; then
  mkdir -p "$HERE/build/bench"
  to=(--results "$HERE/build/bench/results" --document "$HERE/build/bench/benchmarks.md")
fi
job env WORK="$WORK" AS_USER="${AS_USER[*]}" python3 "$BENCH/bench.py" "${to[@]}"
