# Sourced by tests/run/workdir.sh and tests/run/apt-install.sh: what a run says, and how far it is.
#
# say HEADING begins a step and shows the time since the run began; progress TEXT shows how far the step is:
# on a terminal in place of the text before, elsewhere as a line every 15 seconds; progress_end TEXT ends it.

clock() { printf '%d:%02d' $((SECONDS / 60)) $((SECONDS % 60)); }
say() { PROGRESS_AT=$SECONDS; printf '\n== [%s] %s\n' "$(clock)" "$*"; }
die() {
  printf '%s\n' "$*" >&2
  exit 1
}

PROGRESS_AT=0
progress() {
  if [ -t 1 ]; then
    printf '\r%s\033[K' "$*"
  elif [ $((SECONDS - PROGRESS_AT)) -ge 15 ]; then
    PROGRESS_AT=$SECONDS
    printf '%s\n' "$*"
  fi
}
progress_end() {
  if [ -t 1 ]; then printf '\r\033[K'; fi
  printf '%s\n' "$*"
}
