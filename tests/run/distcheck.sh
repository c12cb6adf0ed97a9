# Sourced by tests/run/test.sh: the suite 'dist'.
#
# Builds the release archive and installs it as a user would, with the pgxn client, into a
# copy of the server's tree of its own; then runs a server from there and uninstalls again.

suite_dist() {
  local log=$WORK/log/dist.out rc=0
  logged "$log" dist_steps || rc=$?
  tally dist "$rc" "$(count '^ok ' "$log")" "$(count '^not ok ' "$log")" 0
}

dist_steps() {
  local version archive failed=0 dist=$WORK/dist
  version=$(sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" "$HERE/extension/mq.control")
  archive=$dist/mq-$version.zip
  mkdir "$dist"
  dist_check 'the archive is made' job bash "$HERE/tests/run/dist.sh" "mq-$version" "$archive"
  dist_check 'META.json is complete, and agrees with mq.control and the changelogs' dist_meta "$archive" "$version"
  server_tree dist/tree
  user_dir "$dist"
  dist_files >"$WORK/dist.before"
  echo 'building it once more, as pgxn install does'
  dist_check 'pgxn install works' counted "$WORK/log/dist-install.out" ' -c -o ' \
    "$(find "$HERE/bgworker" -name '*.c' -o -name '*.cpp' | wc -l)" dist_pgxn install "$archive"
  dist_check 'the script of each version and upgrade is installed' dist_scripts "$version"
  dist_check 'CREATE EXTENSION works' dist_create "$version"
  dist_check 'pgxn uninstall works' dist_pgxn uninstall "$archive"
  dist_files >"$WORK/dist.after"
  dist_check 'it leaves no file behind' diff "$WORK/dist.before" "$WORK/dist.after"
  return "$failed"
}

dist_pgxn() {
  as_user env -C "$WORK/dist" MAKEFLAGS="-j$(nproc)" \
    pgxn "$1" --nosudo --pg_config "$PG_BIN/pg_config" "$2"
}

dist_check() {
  local name=$1
  shift
  if "$@"; then echo "ok - $name"; else echo "not ok - $name"; failed=1; fi
}

dist_files() { (cd "$PG_TREE" && find . -type f | sort); }

# The extension itself, the upgrade scripts, and one among them from each older version that the tests know.
dist_scripts() {
  local old upgrade directory=$PG_TREE$(pg_dir sharedir)/extension lacking=0 script
  local scripts=("mq.control" "mq--$1.sql")
  for upgrade in "$HERE"/extension/upgrade/*.sql; do scripts+=("mq--${upgrade##*/}"); done
  for old in "$HERE"/tests/upgrade/mq--*.sql; do
    old=${old##*/mq--}
    compgen -G "$directory/mq--${old%.sql}--*.sql" >/dev/null || { echo "no upgrade from ${old%.sql}"; lacking=1; }
  done
  for script in "${scripts[@]}"; do
    [ -s "$directory/$script" ] || { echo "not installed: $script"; lacking=1; }
  done
  return "$lacking"
}

# What PGXN requires of a distribution: https://pgxn.org/spec/
dist_meta() {
  python3 - "$@" <<'EOF'
import json, re, sys, zipfile
archive, version = sys.argv[1:]
with zipfile.ZipFile(archive) as z:
    names, prefix = set(z.namelist()), f"mq-{version}/"
    meta = json.loads(z.read(prefix + "META.json"))
for key in ("name", "version", "abstract", "maintainer", "license", "provides", "meta-spec"):
    assert meta.get(key), f"META.json lacks {key}"
assert meta.get("release_status") in ("stable", "testing", "unstable"), "META.json: release_status"
oldest = meta["prereqs"]["runtime"]["requires"]["PostgreSQL"]
with zipfile.ZipFile(archive) as z:
    texts = {name: z.read(prefix + name).decode() for name in ("README.md", "CHANGELOG.md", "debian/changelog")}
readme = texts["README.md"]
assert f"PostgreSQL {oldest.split('.')[0]} or newer" in readme, f"README.md and META.json: the oldest PostgreSQL is {oldest}"
assert meta["name"] == "mq" and meta["version"] == version, "META.json: name or version"
assert meta["meta-spec"]["version"] == "1.0.0", "META.json: meta-spec"
for name, provided in meta["provides"].items():
    assert provided["version"] == version, f"META.json: version of {name}"
    for key in ("file", "docfile"):
        assert key not in provided or prefix + provided[key] in names, f"the archive lacks {provided[key]}"
resources = meta["resources"]
urls = [resources["homepage"], resources["bugtracker"]["web"], resources["repository"]["url"], resources["repository"]["web"]]
assert resources["repository"]["type"] == "git", "META.json: type of the repository"
for url in urls:
    assert re.fullmatch(r"https://[\w.-]+/\S*", url), f"META.json: {url}"
newest = re.match(r"postgresql-mq \((\S+)\)", texts["debian/changelog"])
assert newest and newest[1] == version, "debian/changelog: the version"
assert f"\n## {version} " in texts["CHANGELOG.md"], "CHANGELOG.md: the version"
assert f"pgxn install ./mq-{version}.zip" in readme, "README.md names another archive"
outside = [n for n in names if not n.startswith(prefix)]
assert not outside, f"outside of {prefix}: {outside}"
EOF
}

dist_create() {
  local got
  server_start dist-server 'fsync = off' || return 1
  got=$(as_user psql -X -At -h "$WORK/socket" -p "$PG_PORT" -U postgres -d postgres -v ON_ERROR_STOP=1 \
    -q -c 'CREATE EXTENSION mq' -c "SELECT extversion FROM pg_extension WHERE extname = 'mq'") || true
  server_stop dist-server || return 1
  [ "$got" = "$1" ] || { echo "extversion is '$got', not '$1'"; return 1; }
}
