#!/bin/bash
# layout.sh SOURCE PG_CONFIG TMP: called by the suite 'layout' of tests/run/test.sh.
#
# Holds the house (bgworker/) to its plan: every file is in a folder of the Makefile's FOLDERS, includes go to the file's
# own folder and to those that follow, and what is PURE includes no header of the server, nor could. And the built
# library shows the server nothing but C entry points and is small. Prints a line 'ok' or 'not ok' for each.
set -uo pipefail
source=$1 pg_config=$2 tmp=$3
failed=0

check() {
  local name=$1
  shift
  if "$@"; then echo "ok - $name"; else echo "not ok - $name"; failed=1; fi
}

mq_make() { make -s -C "$source" --no-print-directory PG_CONFIG="$pg_config" "$@"; }
layout=$(mq_make layout)
read -ra folders < <(sed -n 's/^folders //p' <<<"$layout")
read -ra pure < <(sed -n 's/^pure //p' <<<"$layout")

# rank FOLDER: its number from the top; nothing for what is no folder.
rank() {
  local i
  for i in "${!folders[@]}"; do [ "${folders[i]}" != "$1" ] || echo "$i"; done
}

# included FILE: the headers that it includes.
included() { sed -n 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*[<"]\([^>"]*\)[>"].*/\1/p' "$1"; }

# Files at the top are the C shim, the list of its entry points, and nothing else.
all_in_folders() {
  local file found=0
  [ "${#folders[@]}" -gt 1 ] || return 1
  while read -r file; do
    case $file in
      mq.c | entries.h) ;;
      */*/*) echo "bgworker/$file is too deep" && found=1 ;;
      */*) [ -n "$(rank "${file%/*}")" ] || { echo "bgworker/$file is in no folder of the plan" && found=1; } ;;
      *) echo "bgworker/$file is in no folder" && found=1 ;;
    esac
  done < <(cd "$source/bgworker" && find . -name '*.[ch]' -o -name '*.[ch]pp' | sed 's|^\./||')
  [ "$found" -eq 0 ]
}

includes_go_down() {
  local folder file header found=0
  for folder in "${folders[@]}"; do
    for file in "$source/bgworker/$folder"/*.[ch]*; do
      case $file in *.o | *.d) continue ;; esac
      while read -r header; do
        if [ -e "$source/bgworker/$folder/$header" ]; then
          echo "bgworker/$folder/${file##*/} includes $header without its folder"
          found=1
        elif [ -e "$source/bgworker/$header" ] && [ "$header" != entries.h ] &&
          [ "$(rank "${header%%/*}")" -lt "$(rank "$folder")" ]; then
          echo "bgworker/$folder/${file##*/} includes $header, which is above it"
          found=1
        fi
      done < <(included "$file")
    done
  done
  [ "$found" -eq 0 ]
}

pure_is_pure() {
  local server file header found=0
  server=$("$pg_config" --includedir-server)
  [ "${#pure[@]}" -gt 1 ] || return 1
  for file in "${pure[@]}"; do
    while read -r header; do
      [ -e "$server/$header" ] || continue
      echo "$file includes $header"
      found=1
    done < <(included "$source/$file")
  done
  [ "$found" -eq 0 ]
}

# What differs between the servers is in one header.
one_header_knows_versions() {
  local more
  more=$(cd "$source/bgworker" && grep -rlE 'PG_VERSION|PG_MAJORVERSION|CATALOG_VERSION_NO' --include='*.[ch]*' . | grep -vx './pg/versions.hpp')
  [ -z "$more" ] || { echo "it asks for the server's version: $more"; return 1; }
  grep -q PG_VERSION_NUM "$source/bgworker/pg/versions.hpp"
}

probe() {
  printf '#include <%s>\nint mq_probe;\n' "$1" >"$tmp/probe.cpp"
  mq_make pure-probe PROBE="$tmp/probe.cpp" >"$tmp/probe.out" 2>&1
}

pure_cannot_include() { ! probe "$1" && grep -q 'No such file' "$tmp/probe.out"; }

exports_only_c() {
  local leaked
  leaked=$(nm -D --defined-only "$source/mq.so" | awk '$3 ~ /^_Z/ { print $3 }')
  [ -z "$leaked" ] || { echo "$leaked" | head -n 20; return 1; }
}

# What it is built with is in it: a server needs no package more than libpq.
needs_no_more() {
  local more
  more=$(readelf -d "$source/mq.so" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' |
    grep -vE '^(libpq|libstdc\+\+|libgcc_s|libc|libm|ld-linux.*|lib[a-z]*san)\.so')
  [ -z "$more" ] || { echo "it needs $more"; return 1; }
}

# It was 17 MB with debug information. The sanitizers' code is not for users.
library_is_small() { [ -n "${SANITIZE:-}" ] || [ "$(stat -c %s "$source/mq.so")" -lt 3000000 ]; }

check 'every file is in a folder of the plan' all_in_folders
check 'includes go downwards' includes_go_down
check 'no pure file includes a server header' pure_is_pure
check 'no file but pg/versions.hpp asks for the version of the server' one_header_knows_versions
check 'a pure file can include what it may (libpq-fe.h)' probe libpq-fe.h
check 'a pure file cannot include postgres.h' pure_cannot_include postgres.h
check 'the library exports no C++ symbol' exports_only_c
check 'the library needs libpq and no other library' needs_no_more
check 'the library is smaller than 3 MB' library_is_small
exit "$failed"
