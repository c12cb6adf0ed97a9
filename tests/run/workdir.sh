# Sourced by tests/run/test.sh and tests/demo/demo.sh, first of all.
#
# workdir_create NAME gives the run a private directory, $WORK, in which everything
# happens, and sees to it that neither the directory nor a process that lives in it
# outlasts the run: not after an error, not after Ctrl-C, and not after kill -9, for which
# a watchdog in a session of its own waits. The programs under test run as an
# unprivileged user ($RUN_USER, through the words of $AS_USER) in an environment
# that holds nothing of the caller's.

. "$HERE/tests/run/progress.sh"

# Variables that the programs under test get besides those of as_user.
USER_ENV=()

workdir_create() {
  workdir_adopt "$(mktemp -d "${MQ_TMP:-/tmp}/mq-$1.XXXXXX")"
  # The caller's: the unprivileged user gets directories below it.
  chmod 711 "$WORK"
  trap workdir_remove EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  trap 'exit 129' HUP
  workdir_watch
  user_dir "$WORK/tmp" "$WORK/log"
}

# Says which directory is the run's, and who runs in it.
workdir_adopt() {
  WORK=$(readlink -f "$1")
  AS_USER=()
  RUN_USER=$(id -un)
  if [ "$EUID" -eq 0 ]; then
    RUN_USER=postgres
    id postgres >/dev/null 2>&1 || RUN_USER=nobody
    AS_USER=(setpriv "--reuid=$RUN_USER" "--regid=$(id -g "$RUN_USER")" --init-groups)
  fi
}

# Makes directories, if need be, and gives them with all below to the unprivileged user.
user_dir() {
  mkdir -p "$@"
  if [ "$EUID" -eq 0 ]; then chown -R "$RUN_USER:" "$@"; fi
}

# job COMMAND...: the command in a session of its own, so that Ctrl-C reaches this script
# alone and it ends things in order. Waited for in a way that a signal interrupts.
job() {
  local pid rc=0
  setsid env --default-signal=INT,QUIT,TERM,HUP,PIPE "$@" <&0 &
  pid=$!
  echo "$pid" >"$WORK/job"
  wait "$pid" || rc=$?
  : >"$WORK/job"
  return "$rc"
}

# as_user COMMAND...: a job of the unprivileged user, in a clean environment.
as_user() {
  job env -i HOME="$WORK/tmp" TMPDIR="$WORK/tmp" USER="$RUN_USER" LANG=C.UTF-8 TERM=dumb \
    PATH="${PG_BIN:+$PG_BIN:}/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" \
    "${USER_ENV[@]}" "${AS_USER[@]}" "$@"
}

# counted LOG PATTERN TOTAL FUNCTION...: keeps the output of the function in LOG and shows, while it runs, how many lines of it
# have the pattern. Its errors are shown at the end.
counted() {
  local log=$1 pattern=$2 total=$3 pid rc=0 begun=$SECONDS outer
  shift 3
  outer=$(cat "$WORK/runner" 2>/dev/null) || true
  : >"$log"
  "$@" >"$log" 2>"$log.err" </dev/null &
  pid=$!
  echo "$outer $pid" >"$WORK/runner"
  while kill -0 "$pid" 2>/dev/null; do
    progress "compiling $(count "$pattern" "$log") of $total, $((SECONDS - begun)) s"
    sleep 0.5
  done
  wait "$pid" || rc=$?
  echo "$outer" >"$WORK/runner"
  if [ "$total" -eq 0 ]; then
    progress_end 'nothing to compile'
  else
    progress_end "compiled $(count "$pattern" "$log") files, $((SECONDS - begun)) s"
  fi
  [ "$rc" -eq 0 ] || grep -vE -- "$pattern" "$log" || true
  cat "$log.err"
  return "$rc"
}

count() { grep -cE -- "$1" "$2" || true; }

# logged LOG FUNCTION...: shows the output of the function (job, as_user, or one that calls
# them) as it comes, and keeps it in LOG. Lines that have the pattern $HIDE, if it is set, are only kept.
logged() {
  local log=$1 pid rc=0
  shift
  : >"$log"
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  tail -s 0.1 -n +1 -f --pid="$pid" "$log" | grep --line-buffered -vE -- "${HIDE:-^\b$}" &
  echo "$pid $!" >"$WORK/runner"
  wait "$pid" || rc=$?
  wait $! || true
  : >"$WORK/runner"
  return "$rc"
}

# Processes whose program or working directory is in $WORK. Asked as both users: a root
# without CAP_SYS_PTRACE does not see either of another user's processes.
workdir_pids() {
  local as
  for as in '' "${AS_USER[*]}"; do
    $as find /proc -maxdepth 2 -regex '/proc/[0-9]+/\(exe\|cwd\)' \
      \( -lname "$WORK" -o -lname "$WORK/*" \) -print 2>/dev/null || true
  done | cut -d / -f 3 | sort -u
}

# Ends them: drivers first, so that they start nothing new, then servers by the signal at
# which a postmaster releases its shared memory, then whatever is left.
workdir_sweep() {
  local pid signal tries
  for pid in $(cat "$WORK/runner" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null || true; done
  for pid in $(cat "$WORK/job" 2>/dev/null); do kill -TERM -- "-$pid" 2>/dev/null || true; done
  for signal in TERM QUIT KILL; do
    for pid in $(workdir_pids); do
      [ "$signal$(cat "/proc/$pid/comm" 2>/dev/null)" = TERMpostgres ] ||
        kill -s "$signal" "$pid" 2>/dev/null || true
    done
    # A driver that is slow to go, its server still running, is not waited for long.
    for ((tries = 0; tries < 70; tries++)); do
      [ -n "$(workdir_pids)" ] || break 2
      [ "$signal" != TERM ] || [ "$tries" -lt 5 ] || break
      sleep 0.1
    done
  done
  rm -rf "$WORK"
}

workdir_alive() { grep -qs '^State:.[^ZX]' "/proc/$1/status"; }

# The watchdog. It also ends a run whose make was killed: nobody would read its result.
workdir_watch() {
  local parent=$$
  if [ "${MAKELEVEL:-0}" -gt 0 ]; then parent=$PPID; fi
  setsid bash -c "$(declare -f workdir_pids workdir_sweep workdir_alive); $(declare -p WORK AS_USER)
    cd /
    while workdir_alive $$ && workdir_alive $parent; do sleep 0.5; done
    ! workdir_alive $$ || kill -TERM $$
    for ((tries = 0; tries < 40; tries++)); do workdir_alive $$ && sleep 0.5; done
    [ ! -d \"\$WORK\" ] || workdir_sweep" </dev/null >/dev/null 2>&1 &
  WATCHDOG=$!
}

workdir_unwatch() {
  kill -KILL -- "-$WATCHDOG" 2>/dev/null
  wait "$WATCHDOG" 2>/dev/null
}

workdir_remove() {
  local rc=$?
  trap '' INT TERM HUP
  trap - EXIT
  set +e
  # Bash would report each job that is killed.
  exec 2>/dev/null
  workdir_sweep
  workdir_unwatch
  exit "$rc"
}

# Lets go of the directory and what runs in it: neither is removed at the end.
workdir_keep() {
  trap - EXIT
  workdir_unwatch || true
}

# results_keep DIRECTORY...: keeps these of the run's directories, as far as they are there, below build/results for a look.
results_keep() {
  local kept=$HERE/build/results/${WORK##*/} directory
  mkdir -p "$kept" 2>/dev/null || return 0
  for directory; do
    [ ! -d "$WORK/$directory" ] || cp -R "$WORK/$directory" "$kept/${directory//\//-}"
  done
  chown -R --reference="$HERE" "$HERE/build" 2>/dev/null || true
  printf '\nLogs and differences are in %s\n' "$kept"
}
