#!/bin/bash
# dist.sh NAME-VERSION [TARGET]: what `make dist` runs, and tests/run/distcheck.sh.
#
# Writes NAME-VERSION.zip (or TARGET): in a git checkout every file that git does not ignore,
# as it is now; in an unpacked release everything that was not built. Nothing else is
# written, neither to the checkout nor to its .git.
set -euo pipefail
name=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
target=$(readlink -m "${2:-$here/$name.zip}")
cd "$here"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

git() { command git -c safe.directory="$here" "$@"; }

if [ -e .git ] && command -v git >/dev/null && objects=$(git rev-parse --git-path objects 2>/dev/null); then
  # A tree of the files as they are, made in an index and an object store of our own.
  mkdir "$tmp/objects"
  export GIT_INDEX_FILE=$tmp/index GIT_OBJECT_DIRECTORY=$tmp/objects
  GIT_ALTERNATE_OBJECT_DIRECTORIES=$(readlink -f "$objects")
  export GIT_ALTERNATE_OBJECT_DIRECTORIES
  git add -A .
  git archive --format=zip --prefix="$name/" -o "$tmp/$name.zip" "$(git write-tree)"
else
  mkdir "$tmp/$name"
  tar --exclude=./build --exclude=./.git --exclude='*.o' --exclude='*.d' --exclude='*.so' \
    --exclude='./mq-*.zip' --exclude='./extension/mq--*.sql' -cf - . | tar -C "$tmp/$name" -xf -
  (cd "$tmp" && zip -q -r "$name.zip" "$name")
fi
mv "$tmp/$name.zip" "$target"
echo "$target"
