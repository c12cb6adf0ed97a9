# Sourced by tests/run/test.sh: one function a suite. Each runs its tests in $WORK, shows
# their output, and adds to PASSED, FAILED and SKIPPED. A runner that fails without
# a failed test to show for it, or that ran nothing, is a failure itself.

PASSED=0 FAILED=0 SKIPPED=0 REASONS=()

# tally SUITE STATUS PASSED FAILED SKIPPED
tally() {
  local suite=$1 status=$2 passed=$3 failed=$4 skipped=$5
  if [ "$failed" -eq 0 ] && { [ "$status" -ne 0 ] || [ $((passed + skipped)) -eq 0 ]; }; then
    echo "$suite: the runner ended with status $status after $((passed + skipped)) tests"
    failed=1
  fi
  PASSED=$((PASSED + passed)) FAILED=$((FAILED + failed)) SKIPPED=$((SKIPPED + skipped))
  echo "-- $suite: $passed passed, $failed failed$([ "$skipped" -eq 0 ] || echo ", $skipped skipped"), $((SECONDS - BEGUN)) s"
}

# not_tested SUITE WHY: there is a reason why it cannot run, which is said.
not_tested() {
  echo "The suite $1 cannot run: $2."
  REASONS+=("$1: skipped, since $2")
  tally "$1" 0 0 0 1
  # A run of this suite alone must not end as if all were well.
  [ "$suites" != "$1" ] || FAILED=$((FAILED + 1))
}

# failures: what failed, by suite, with the words of the runners, which say what came and what was expected. Short, since
# it stands last of all, where no more than the end of the output may be kept.
failures() {
  local suite log
  for suite in $suites; do
    log=$WORK/log/$suite.out
    [ -s "$log" ] || continue
    {
      case $suite in
        unit) grep -E '^\[  FAILED  \].*ms\)$|^tests/unit.*Failure|^bgworker.*Failure' "$log" ;;
        regress | isolation)
          grep -E "$regress_failed" "$log"
          cat "$WORK/$suite/regression.diffs"
          ;;
        tap | original)
          # A file that fails without a failed test has a line of its own in the closing report.
          awk '/Failed test/ { left = 8 } left > 0 && !/^ *#/ { left = 0 } left-- > 0' "$log"
          sed -n '/^Test Summary Report/,/^Files=/p' "$log" | grep -vE '^(Test Summary Report|-+|Files=.*)$'
          ;;
        *) grep '^not ok ' "$log" ;;
      esac
    } 2>/dev/null | head -n 40 | cut -c 1-300 | sed "s/^/$suite: /"
  done
}

# names SUFFIX FILE...: the suite's tests by name, those of $TESTS or all, in NAMES.
names() {
  local suffix=$1 file
  shift
  NAMES=()
  if [ -n "${TESTS:-}" ]; then
    read -ra NAMES <<<"$TESTS"
  else
    for file; do [ ! -e "$file" ] || NAMES+=("$(basename "$file" "$suffix")"); done
  fi
}

suite_unit() {
  local log=$WORK/log/unit.out ran passed skipped rc=0
  if ! build build/unit/mq_unit; then
    tally unit 1 0 0 0
    return
  fi
  install -m 755 "$SOURCE/build/unit/mq_unit" "$WORK/mq_unit"
  # A line for each group of tests, not for each of hundreds that passed.
  HIDE='^\[ RUN|^\[       OK|^\[---[^(]*$|^$' logged "$log" as_user env -C "$WORK/tmp" \
    MQ_FUZZ_CORPUS="$WORK/src/tests/fuzz/corpus" "$WORK/mq_unit" \
    ${TESTS:+"--gtest_filter=${TESTS// /:}"} || rc=$?
  ran=$(count '^\[ RUN      \]' "$log")
  passed=$(count '^\[       OK \].* ms\)$' "$log")
  skipped=$(count '^\[  SKIPPED \].* ms\)$' "$log")
  # What was begun and not ended is the test at which a sanitizer stopped the program.
  tally unit "$rc" "$passed" $((ran - passed - skipped)) "$skipped"
}

# With SANITIZE: a process whose sanitizer finds something writes it to a file of its own, and aborts. That is counted here,
# since a worker that is replaced fails no test.
sanitizer_reports() {
  user_dir "$WORK/log/found"
  USER_ENV+=("UBSAN_OPTIONS=print_stacktrace=1:abort_on_error=1:log_path=$WORK/log/found/report")
}

suite_sanitizer() {
  local log=$WORK/log/sanitizer.out reports
  say sanitizer
  BEGUN=$SECONDS
  reports=$(find "$WORK/log/found" -type f -size +0 | wc -l)
  {
    if [ "$reports" -eq 0 ]; then
      echo "ok - no process of mq with -fsanitize=$SANITIZE reported anything"
    else
      echo "not ok - $reports processes of mq with -fsanitize=$SANITIZE reported something"
      find "$WORK/log/found" -type f -size +0 -exec cat {} + | head -n 200
    fi
  } >"$log"
  cat "$log"
  tally sanitizer 0 "$(count '^ok ' "$log")" "$(count '^not ok ' "$log")" 0
  suites+=' sanitizer'
}

suite_layout() {
  local log=$WORK/log/layout.out rc=0
  logged "$log" job bash "$HERE/tests/run/layout.sh" "$SOURCE" "$PG_CONFIG" "$WORK" || rc=$?
  tally layout "$rc" "$(count '^ok ' "$log")" "$(count '^not ok ' "$log")" 0
}

# model STEPS SESSIONS SEED [OPTION...]: tests/model/model.py against the server of suite_model.
model() {
  as_user env -C "$WORK/src/tests/model" PGHOST="$WORK/socket" PGPORT="$PG_PORT" PGUSER=postgres PGDATABASE=postgres \
    PYTHONDONTWRITEBYTECODE=1 "$PYTHON" model.py --steps "$1" --sessions "$2" ${3:+--seed "$3"} \
    --clock "$WORK/model/clock" "${@:4}"
}

# Random operations on a server and on a model, with a clock that the model sets: in one session, and in several, or in as
# many as SESSIONS says: 3,500 steps and 1,500. With STEPS so many of each, and a new seed each time; SEED=n repeats one.
suite_model() {
  local log=$WORK/log/model.out rc=0 library PYTHON steps=${STEPS:-} seed=${SEED:-}
  [ -n "${STEPS:-}${SEED:-}" ] || seed=1
  library=$(find /usr/lib /usr/local/lib -name libfaketime.so.1 -print -quit 2>/dev/null) || true
  PYTHON=$(deps_python psycopg) || true
  if [ -z "$library" ] || [ -z "$PYTHON" ]; then
    REASONS+=("model: skipped, since $([ -n "$library" ] && echo python3-psycopg || echo libfaketime) is not installed")
    tally model 0 0 0 1
    return
  fi
  mkdir -p "$WORK/model"
  echo +0 >"$WORK/model/clock"
  user_dir "$WORK/model"
  : >"$log"
  if model_server; then
    logged "$log" model_runs || rc=$?
    server_stop model-server || rc=1
  else
    rc=1
  fi
  tally model "$rc" "$(count '^ok ' "$log")" "$(count '^not ok ' "$log")" 0
}

# The library keeps its clock with its process's user, so it must not be loaded before that is chosen.
model_server() {
  local AS_USER=("${AS_USER[@]}" env "LD_PRELOAD=$library" "FAKETIME_TIMESTAMP_FILE=$WORK/model/clock" FAKETIME_NO_CACHE=1
    FAKETIME_DONT_FAKE_MONOTONIC=1)
  server_start model-server 'fsync = off' 'synchronous_commit = off' 'autovacuum = off' 'mq.max_workers = 0' 'mq.dead_retention = -1' \
    'mq.failure_retention = -1'
}

model_runs() {
  local failed=0 sessions
  [ -n "${SESSIONS:-}" ] || model 300 2 1 --sabotage || failed=1
  for sessions in ${SESSIONS:-1 4}; do model "${steps:-$((sessions == 1 ? 3500 : 1500))}" "$sessions" "$seed" || failed=1; done
  return "$failed"
}

# Models of races, by the model checker Spin.
suite_spin() {
  local log=$WORK/log/spin.out rc=0
  if ! command -v spin >/dev/null; then
    REASONS+=('spin: skipped, since spin is not installed')
    tally spin 0 0 0 1
    return
  fi
  user_dir "$WORK/spin"
  logged "$log" as_user bash "$WORK/src/tests/run/spin.sh" "$WORK/src/tests/model" "$WORK/spin" || rc=$?
  tally spin "$rc" "$(count '^ok ' "$log")" "$(count '^not ok ' "$log")" 0
}

# The formats of pg_regress up to 15, and from 16 on.
regress_passed='^(test .* \.\.\. ok |ok [0-9]+ )'
regress_failed='^(test .* \.\.\. FAILED|not ok [0-9]+ )'

# regress SUITE RUNNER INPUTDIR DATABASE [SETTING...]: the tests of NAMES, against a new server.
regress() {
  local suite=$1 runner=$2 input=$3 log=$WORK/log/$1.out out=$WORK/$1 rc=0
  user_dir "$out"
  : >"$log"
  if server_start "$suite-server" 'fsync = off' "${@:5}"; then
    logged "$log" as_user env -C "$out" "$PGXS_SRC/test/$runner" --host="$WORK/socket" \
      --port="$PG_PORT" --user=postgres --bindir="$PG_BIN" --inputdir="$input" \
      --outputdir="$out" --dbname="$4" "${NAMES[@]}" || rc=$?
    [ ! -s "$out/regression.diffs" ] || head -n 300 "$out/regression.diffs"
    server_stop "$suite-server" || rc=1
  else
    rc=1
  fi
  tally "$suite" "$rc" "$(count "$regress_passed" "$log")" "$(count "$regress_failed" "$log")" 0
}

suite_regress() {
  names .sql "$WORK"/src/sql/*.sql
  regress regress regress/pg_regress "$WORK/src" contrib_regression
}

suite_isolation() {
  names .spec "$WORK"/src/tests/isolation/specs/*.spec
  regress isolation isolation/pg_isolation_regress "$WORK/src/tests/isolation" isolation_regression 'mq.max_workers = 0'
}

suite_tap() {
  names .pl "$WORK"/src/tests/t/*.pl
  NAMES=("${NAMES[@]/#/t/}")
  tap tap
}

# Each kind of fault once, under load; TESTS names kinds by their numbers.
suite_faults() {
  local log=$WORK/log/faults.out rc=0 reason
  # shellcheck disable=SC2046,SC2086 # an option and its value are words
  logged "$log" faults_run $([ -z "${TESTS:-}" ] || echo "--kinds ${TESTS// /,}") || rc=$?
  tally faults "$rc" "$(grep '^ok ' "$log" | grep -cv '# SKIP')" "$(count '^not ok ' "$log")" "$(count '^ok .*# SKIP' "$log")"
  while read -r reason; do REASONS+=("faults: $reason"); done < <(sed -nE 's/^ok - (.*) # SKIP (.*)/1 skipped, since \2: \1/p' "$log")
}

# What compares mq with the schema that it replaces: what there is for that alone, and the cases of MqFlaw, which the
# suite tap runs on mq. Off where there is no copy of that schema.
suite_original() {
  local missing file USER_ENV=("${USER_ENV[@]}" "MQ_ORIGINAL=$WORK/original-schema.txt")
  if [ ! -f "$ORIGINAL" ]; then
    missing='there is no copy of the original schema to compare with; MQ_ORIGINAL=path names one'
  elif [ ! -f "$PG_TREE$(pg_dir sharedir)/extension/uuid-ossp.control" ]; then
    missing='the server has no extension "uuid-ossp", which the original schema needs'
  fi
  if [ -n "${missing:-}" ]; then
    echo "Off: $missing."
    # A run of this suite alone must not end as if all were well.
    [ "$suites" != original ] || tally original 1 0 0 0
    return
  fi
  install -m 644 "$ORIGINAL" "$WORK/original-schema.txt"
  names .pl "$WORK"/src/tests/original/*.pl $(grep -l '^use MqFlaw' "$WORK"/src/tests/t/*.pl)
  for file in "${!NAMES[@]}"; do
    if [ -e "$WORK/src/tests/original/${NAMES[file]}.pl" ]; then NAMES[file]=original/${NAMES[file]}; else NAMES[file]=t/${NAMES[file]}; fi
  done
  tap original
}

# tap SUITE: the files of NAMES.
tap() {
  local suite=$1 log=$WORK/log/$1.out out=$WORK/$1 raw=$WORK/log/$1 counts reason rc=0
  if ! build build/client/mq_client; then
    tally "$suite" 1 0 0 0
    return
  fi
  install -m 755 "$SOURCE/build/client/mq_client" "$WORK/mq_client"
  user_dir "$out" "$raw"
  case " ${NAMES[*]} " in *' t/123_examples '*) deps_node_pg "$WORK/npm" ;; esac
  case " ${NAMES[*]} " in *' t/160_monitoring '*) deps_prometheus "$WORK/monitoring" ;; esac
  # shellcheck disable=SC2086 # PROVE_FLAGS are words
  logged "$log" as_user env -C "$WORK/src/tests" TESTDIR="$out" TESTDATADIR="$out/tmp_check" \
    TESTLOGDIR="$out/tmp_check/log" PG_REGRESS="$PGXS_SRC/test/regress/pg_regress" \
    MQ_CLIENT="$WORK/mq_client" NODE_PATH="$WORK/npm/node_modules" MQ_MONITORING="$WORK/monitoring" PGPORT=65432 PERL_TEST_HARNESS_DUMP_TAP="$raw" \
    prove --timer -I "$PGXS_SRC/test/perl" -I t ${PROVE_FLAGS:-} "${NAMES[@]/%/.pl}" || rc=$?
  read -ra counts <<<"$(tap_counts "$raw")"
  tally "$suite" "$rc" "${counts[@]}"
  while read -r reason; do REASONS+=("$suite: $reason"); done < <(tap_reasons "$raw")
}

# Passed, failed and skipped assertions in the raw output of TAP files.
tap_counts() {
  find "$1" -name '*.pl' -exec cat {} + | awk '
    /^ok .*# *[Ss][Kk][Ii][Pp]/ || /^1\.\.0 *# *[Ss][Kk][Ii][Pp]/ { skipped++; next }
    /^ok / || /^not ok .*# *TODO/ { passed++; next }
    /^not ok / { failed++ }
    END { print passed + 0, failed + 0, skipped + 0 }'
}

# Why what was skipped was: how many, and the test's own words.
tap_reasons() {
  find "$1" -name '*.pl' -exec cat {} + |
    sed -nE 's/^(ok|1\.\.0).*# *[Ss][Kk][Ii][Pp] *(.*)/\2/p' | sort | uniq -c | sed 's/^ *\([0-9]*\) /\1 skipped, since /'
}
