# Sourced by tests/run/test.sh: the suite 'package', which runs only where it is asked for (`make test-package`), since it
# compiles the extension three times and runs the tests of SQL once more.
#
# Builds the Debian package from the archive that `make dist` makes, twice, looks at it with lintian, and installs,
# upgrades from 0.1.0, tests with autopkgtest and purges it. All of that is real, with apt and dpkg as root, but on a copy of
# this machine's file system that exists for this run alone: an overlay in memory, in mount and process namespaces of its
# own (package-inside.sh). Nothing of it is left on the machine, but for downloaded packages in the cache.

suite_package() {
  local log=$WORK/log/package.out rc=0 missing='' cache=${XDG_CACHE_HOME:-$HOME/.cache}/mq-test/apt
  if [ "$EUID" -ne 0 ]; then
    missing='it needs root'
  elif ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
    missing='it needs Debian'
  elif ! unshare -m -p -f --kill-child true 2>/dev/null; then
    missing='no namespaces can be made here'
  fi
  if [ -n "$missing" ]; then
    not_tested package "$missing"
    return
  fi
  mkdir -p "$cache/partial" "$WORK/package"
  : >"$log"
  package_sources || rc=$?
  [ "$rc" -ne 0 ] ||
    logged "$log" job unshare -m -p -f --kill-child bash "$HERE/tests/run/package-inside.sh" "$WORK/package" "$cache" || rc=$?
  tally package "$rc" "$(grep '^ok ' "$log" | grep -cv '# SKIP')" "$(count '^not ok ' "$log")" "$(count '^ok .*# SKIP' "$log")"
  while read -r missing; do REASONS+=("package: $missing"); done < <(sed -nE 's/^ok - (.*) # SKIP (.*)/1 skipped, since \2: \1/p' "$log")
}

# The archive, and the sources of 0.1.0 where the repository has them.
package_sources() {
  local version base=df71f3c
  version=$(sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" "$HERE/extension/mq.control")
  bash "$HERE/tests/run/dist.sh" "mq-$version" "$WORK/package/mq-$version.zip" || return
  git -c safe.directory="$HERE" -C "$HERE" archive --prefix=mq-0.1.0/ -o "$WORK/package/mq-0.1.0.tar" "$base" 2>/dev/null ||
    rm -f "$WORK/package/mq-0.1.0.tar"
}
