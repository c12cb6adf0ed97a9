# Sourced by tests/run/test.sh and tests/demo/demo.sh; tests/run/apt-install.sh takes deps_figures.
#
# deps_install KIND... makes sure that the Debian packages of each KIND (build, appview, test,
# dist, fuzz, cassert, valgrind) are installed and sets PG_CONFIG. It is quick when nothing is missing, says
# what is missing and how much that is, asks for a password where sudo needs one and a terminal is there, and never lets a package create or start a
# PostgreSQL cluster. A PG_CONFIG given by the user is left alone, and then no
# package of PostgreSQL's is installed.

# The newest server of this Debian release.
deps_pg_major() {
  local major
  major=$(apt-cache depends postgresql 2>/dev/null |
    sed -n 's/.*Depends: postgresql-\([0-9][0-9]*\)$/\1/p' | head -n 1)
  echo "${major:-15}"
}

# True if this pg_config belongs to a server that extensions can be built and tested on.
deps_pg_complete() {
  local bindir pgxs
  bindir=$("$1" --bindir 2>/dev/null) && pgxs=$("$1" --pgxs 2>/dev/null) &&
    [ -x "$bindir/postgres" ] && [ -f "$pgxs" ] &&
    [ -x "${pgxs%/makefiles/pgxs.mk}/test/regress/pg_regress" ]
}

# deps_python MODULE: the Python that has the module, that of the system first. Fails where none has.
deps_python() {
  local python
  for python in /usr/bin/python3 python3; do
    if "$python" -c "import $1" 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  return 1
}

deps_missing() {
  local package
  for package; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
      echo "$package"
  done
}

# The package of pg_cron for the server of Debian's with this number, or for that of PG_CONFIG; nothing where apt knows
# none. Then t/141_pg_cron says that it is missing.
deps_cron() {
  local major=$1
  [ -n "$major" ] || major=$("${PG_CONFIG:-pg_config}" --bindir | sed -n 's,^/usr/lib/postgresql/\([0-9]*\)/bin$,\1,p')
  if apt-cache show "postgresql-$major-cron" >/dev/null 2>&1; then echo "postgresql-$major-cron"; fi
}

deps_install() {
  local kind packages=() missing major=
  if [ -n "${PG_CONFIG:-}" ]; then
    deps_pg_complete "$PG_CONFIG" ||
      die "PG_CONFIG=$PG_CONFIG does not name a server with its development files."
  elif deps_pg_complete pg_config; then
    PG_CONFIG=$(command -v pg_config)
  else
    command -v apt-get >/dev/null || die "No PostgreSQL server found; set PG_CONFIG."
  fi
  if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then
    for kind; do
      case $kind in
        build)
          packages+=(g++ make libfmt-dev libxxhash-dev)
          if [ -z "${PG_CONFIG:-}" ]; then
            major=$(deps_pg_major)
            packages+=(postgresql-common "postgresql-$major" "postgresql-server-dev-$major" libpq-dev)
          elif [[ $("$PG_CONFIG" --bindir) == /usr/lib/postgresql/* ]]; then
            packages+=(libpq-dev)
          fi
          ;;
        appview) packages+=(python3-psycopg) ;;
        test) packages+=(libgtest-dev perl libipc-run-perl pgbouncer python3-psycopg python3-yaml libfaketime spin $(deps_cron "$major")) ;;
        dist) packages+=(zip pgxnclient) ;;
        fuzz) packages+=(clang libclang-rt-dev) ;;
        cassert) packages+=(dpkg-dev bison flex libreadline-dev zlib1g-dev uuid-dev valgrind) ;;
        valgrind) packages+=(valgrind libc6-dbg) ;;
      esac
    done
    mapfile -t missing < <(deps_missing "${packages[@]}")
    if [ "${#missing[@]}" -gt 0 ]; then
      deps_apt "${missing[@]}"
    fi
  fi
  if [ -z "${PG_CONFIG:-}" ]; then
    PG_CONFIG=/usr/lib/postgresql/$major/bin/pg_config
    deps_pg_complete "$PG_CONFIG" || die "postgresql-$major was installed but $PG_CONFIG does not work."
  fi
  export PG_CONFIG
}

# npm's package pg, for t/123_examples, in DIR/node_modules; kept in the cache, and downloaded once. Without it, or without
# Node, the test says so.
deps_node_pg() {
  local cache=${XDG_CACHE_HOME:-$HOME/.cache}/mq-test/npm
  command -v node >/dev/null && command -v npm >/dev/null || return 0
  if [ ! -d "$cache/node_modules/pg" ]; then
    say "Installing npm's package pg"
    mkdir -p "$cache" && (cd "$cache" && timeout 120 npm install --no-audit --no-fund --loglevel=error pg) || return 0
  fi
  mkdir -p "$1" && cp -R "$cache/node_modules" "$1/" && chmod -R a+rX "$1"
}

# Prometheus and two exporters, for t/160_monitoring, in DIR. Where they are installed those are taken. Without them the test
# says so.
deps_prometheus() {
  [ "$(command -v promtool prometheus-sql-exporter prometheus-postgres-exporter | wc -l)" -lt 3 ] || return 0
  deps_unpack prometheus 'usr/bin/prom*' "$1" prometheus prometheus-sql-exporter prometheus-postgres-exporter
}

# Patroni and etcd, for the suite failover, in DIR, with what they need of Python's. Where they are installed those are taken.
deps_patroni() {
  [ "$(command -v patroni patronictl etcd | wc -l)" -lt 3 ] || return 0
  deps_unpack patroni usr "$1" patroni etcd-server python3-etcd python3-cdiff python3-click python3-colorama python3-dateutil python3-dnspython \
    python3-pkg-resources python3-prettytable python3-psutil python3-psycopg2 python3-six python3-urllib3 python3-wcwidth python3-yaml
}

# deps_unpack NAME FILES DIR PACKAGE...: the files of Debian's packages that have this pattern, in DIR. The packages are unpacked
# and not installed, so that none of their services is started, now or at the next boot. Kept in the cache, and downloaded
# once. Where that is not possible there is no DIR.
deps_unpack() {
  local name=$1 files=$2 target=$3 cache=${XDG_CACHE_HOME:-$HOME/.cache}/mq-test/$1 package part
  shift 3
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 0
  if [ ! -d "$cache" ]; then
    say "Downloading Debian's packages of $name"
    part=$(mktemp -d) && chmod 755 "$part"
    if (cd "$part" && timeout 300 apt-get -q -y -o APT::Sandbox::User=root download "$@" >/dev/null); then
      mkdir -p "$cache.part" && for package in "$part"/*.deb; do dpkg-deb -x "$package" "$cache.part"; done
      mv "$cache.part" "$cache"
    fi
    rm -rf "$part" "$cache.part"
  fi
  # shellcheck disable=SC2086 # a pattern
  [ ! -d "$cache" ] || { mkdir -p "$target" && cp -R "$cache"/$files "$target/" && chmod -R a+rX "$target"; }
}

# What apt would do: how many packages, how much to download, how much on disk. Nothing if it does not know
# the packages.
deps_figures() {
  LC_ALL=C apt-get -q -o Debug::NoLocking=1 install --no-install-recommends --assume-no "$@" 2>/dev/null </dev/null |
    awk '/ newly installed/ { n = $3 + $1 }
      /^Need to get / { sub(/^Need to get ([^\/]*\/)?/, ""); sub(/ of archives.*/, ""); get = $0 }
      /^After this operation, / { sub(/^After this operation, /, ""); sub(/ of additional.*/, ""); disk = $0 }
      END { if (n) print "With what they need: " n " packages, " get " to download, " disk " on disk." }' || true
}

deps_apt() {
  local as_root=() figures by_hand="Please run

  apt-get update && apt-get install --no-install-recommends $*

as root (or set PG_CONFIG to use another PostgreSQL) and try again."
  say 'Installing Debian packages'
  echo "Missing: $*"
  if [ "$EUID" -ne 0 ]; then
    if sudo -n true 2>/dev/null; then
      as_root=(sudo -n)
    elif [ -t 0 ] && { : </dev/tty; } 2>/dev/null && command -v sudo >/dev/null; then
      as_root=(sudo -p '[sudo] password of %p: ')
      figures=$(deps_figures "$@")
      [ -z "$figures" ] || echo "$figures"
      echo 'They are installed with apt-get, and stay installed. sudo asks for a password, once; nothing else runs as root.'
    else
      die "Neither root nor a sudo that works here is at hand to install them. $by_hand"
    fi
  fi
  # In a session of its own, so that neither Ctrl-C nor the end of this run leaves a package
  # half installed.
  local pid rc=0 stop=0
  trap 'stop=1; echo "Stopping as soon as apt, if it runs, has come to its end."' INT TERM HUP
  "${as_root[@]}" setsid --wait bash "$HERE/tests/run/apt-install.sh" "$@" &
  pid=$!
  while :; do
    rc=0
    wait "$pid" || rc=$?
    [ -d "/proc/$pid" ] || break
  done
  trap - INT TERM HUP
  [ "$stop" -eq 0 ] || exit 130
  [ "$rc" -eq 0 ] || die "The packages could not be installed. $by_hand"
}
