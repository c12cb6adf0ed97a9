# Sourced by tests/run/test.sh and tests/demo/demo.sh after workdir.sh and deps.sh.
#
# server_tree NAME copies the server's programs to $WORK/NAME, where they find their
# own libraries and extensions by relative paths: installing into the copy leaves the
# system's PostgreSQL as it is. An mq that is installed there is not copied. server_install builds mq and installs it there.
# server_start NAME [SETTING...] runs a new cluster on a unix socket in $WORK/socket, and
# server_stop NAME stops it and fails if it crashed meanwhile or would not stop.

# Nothing else is in the socket's directory, and nothing listens elsewhere.
PG_PORT=5432

pg_dir() { "$PG_CONFIG" "--$1"; }

server_tree() {
  local tree=$WORK/$1 dir
  for dir in "$(pg_dir bindir)" "$(pg_dir pkglibdir)" "$(pg_dir sharedir)"; do
    mkdir -p "$tree$dir"
    tar -C "$dir" --exclude=./bitcode --exclude=./man --exclude=./doc \
      --exclude=./mq.so --exclude='./extension/mq--*.sql' --exclude=./extension/mq.control -cf - . |
      tar -C "$tree$dir" --no-same-owner -xf -
  done
  mkdir -p "$tree$(pg_dir libdir)"
  # Headers are only read, and only to build against the copy: tests build, too, as a user who may not reach the caller's home.
  for dir in "$(pg_dir includedir)" "$(pg_dir pkgincludedir)"; do
    if [ ! -e "$tree$dir" ]; then
      mkdir -p "$(dirname "$tree$dir")"
      if "${AS_USER[@]}" test -r "$dir"; then ln -s "$dir" "$tree$dir"; else cp -R "$dir" "$tree$dir"; fi
    fi
  done
  PG_TREE=$tree
  PG_BIN=$tree$(pg_dir bindir)
  PGXS_SRC=$tree$(dirname "$(dirname "$(pg_dir pgxs)")")
}

# build TARGET... runs make in $SOURCE: one run at a time, and as the owner of the checkout,
# so that root leaves no files behind that the owner cannot replace. Shows how many files it compiles.
build() {
  local owner=()
  if [ "$EUID" -eq 0 ] && [ "$(stat -c %u "$SOURCE")" -ne 0 ]; then
    owner=(setpriv "--reuid=$(stat -c %u "$SOURCE")" "--regid=$(stat -c %g "$SOURCE")" --clear-groups)
    "${owner[@]}" test -w "$SOURCE" -a -x "$SOURCE" 2>/dev/null || owner=()
  fi
  local compiles=' -c -o ' total
  source_make "${owner[@]}" -- -s build/flags || return
  total=$(source_make "${owner[@]}" -- -n "$@" 2>/dev/null | grep -cE -- "$compiles") || true
  counted "$WORK/log/build-${1##*/}.out" "$compiles" "$total" source_make "${owner[@]}" -- "$@"
}

server_install() { source_make -- -s install DESTDIR="$PG_TREE" >/dev/null; }

# source_make [PREFIX...] -- [OPTION...] TARGET..., with the options of MAKE_OPTIONS as well.
MAKE_OPTIONS=()
source_make() {
  local prefix=()
  while [ "$1" != -- ]; do
    prefix+=("$1")
    shift
  done
  shift
  job flock "$SOURCE/Makefile" "${prefix[@]}" make -C "$SOURCE" --no-print-directory \
    -j"$(nproc)" PG_CONFIG="$PG_CONFIG" ${SANITIZE:+"SANITIZE=$SANITIZE"} "${MAKE_OPTIONS[@]}" "$@"
}

server_start() {
  local name=$1 data=$WORK/$1 log=$WORK/log/$1.log
  shift
  user_dir "$WORK/socket" "$data"
  chmod 700 "$WORK/socket" "$data"
  as_user initdb -D "$data" -U postgres --auth=trust --no-sync --encoding=UTF8 \
    --locale="${PG_LOCALE:-C}" >"$log.initdb" 2>&1 || {
    cat "$log.initdb"
    return 1
  }
  printf '%s\n' "listen_addresses = ''" "unix_socket_directories = '$WORK/socket'" \
    "port = $PG_PORT" "shared_preload_libraries = 'mq'" 'max_worker_processes = 16' \
    "log_line_prefix = '%m [%p] %b %q%d '" "$@" >>"$data/postgresql.conf"
  as_user pg_ctl -D "$data" -l "$log" -w -t 60 start >"$log.start" 2>&1 || {
    echo 'The server does not start:'
    cat "$log.start"
    tail -n 30 "$log"
    return 1
  }
}

server_stop() {
  local data=$WORK/$1 log=$WORK/log/$1.log bad=0
  as_user pg_ctl -D "$data" -w -t 30 -m fast stop >"$log.stop" 2>&1 || bad=1
  if [ "$bad" -ne 0 ]; then
    echo 'The server did not stop:'
    cat "$log.stop"
    tail -n 20 "$log"
    as_user pg_ctl -D "$data" -w -t 10 -m immediate stop >/dev/null 2>&1 || true
  fi
  if grep -E 'was terminated by signal|TRAP:|PANIC:' "$log"; then
    echo 'The server crashed: see the lines above.'
    bad=1
  fi
  return "$bad"
}
