#!/usr/bin/env bash
# Builds this example against the Tandem that is installed in PREFIX, in Release and in Debug, and has its windows
# driven by clicks and keys on an X server of its own; screenshots come to OUT.
# Usage: check.sh PREFIX [OUT]. MNIST is in the repository's data/mnist, or where TANDEM_MNIST says.
set -euo pipefail
source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[[ $# -ge 1 && -d $1 ]] || { echo "usage: check.sh PREFIX [OUT]" >&2; exit 2; }
prefix=$(cd "$1" && pwd)
data=$(cd "${TANDEM_MNIST:-$source/../../data/mnist}" && pwd)
work=$(mktemp -d)
out=${2:-$work/screenshots}
mkdir -p "$out" "$work/data"
ln -s "$data" "$work/data/mnist"  # by the name that screenshots show
out=$(cd "$out" && pwd)
pids=()
finish() {
  ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null || true
  wait
  rm -rf "$work"
}
trap finish EXIT

say() { echo "embed: $*"; }

# Runs a command with its output in a log; on failure shows the end of that.
logged() {
  "$@" >"$work/log" 2>&1 || { echo "embed: failed: $*" >&2; tail -n 40 "$work/log" >&2; exit 1; }
}

start_desktop() {
  Xvfb -displayfd 3 -screen 0 1280x900x24 -nolisten tcp 3>"$work/display" >"$work/xvfb.log" 2>&1 &
  pids+=($!)
  for ((i = 0; i < 600; ++i)); do
    [[ ! -s $work/display ]] || break
    kill -0 "${pids[0]}" 2>/dev/null || break
    sleep 0.1
  done
  [[ -s $work/display ]] || { echo "embed: no X server:" >&2; cat "$work/xvfb.log" >&2; exit 1; }
  DISPLAY=:$(<"$work/display")
  export DISPLAY
  cat >"$work/style" <<STYLE
*font: Inter-10
*borderWidth: 0
window.frame.borderWidth: 1
window.frame.focus.borderColor: #c4c7cc
window*appearance: flat solid
window*backgroundColor: #e4e6ea
window*textColor: #24272c
window*foregroundColor: #24272c
window.title.marginWidth: 5
window.label.marginWidth: 3
window.frame.unfocus.borderColor: #c4c7cc
toolbar*appearance: flat solid
toolbar*backgroundColor: #8a94a3
window.handleHeight: 1
window.alignment: center
STYLE
  cat >"$work/rc" <<RC
session.styleFile: $work/style
session.screen0.toolbar.autoHide: True
session.screen0.toolbar.widthPercent: 1
session.screen0.windowPlacement: CenterPlacement
session.screen0.focusNewWindows: True
session.focusNewWindows: True
session.windowPlacement: CenterPlacement
RC
  bsetroot -solid '#8a94a3'
  blackbox -rc "$work/rc" >"$work/blackbox.log" 2>&1 &
  pids+=($!)
  mkdir -m 700 "$work/runtime"
  export XDG_RUNTIME_DIR=$work/runtime
}

build() {
  logged cmake -S "$source" -B "$work/$1" -G Ninja -DCMAKE_BUILD_TYPE="$1" -DCMAKE_PREFIX_PATH="$prefix" \
    -DCMAKE_CXX_COMPILER="${CXX:-g++}"
  logged ninja -C "$work/$1"
}

# Names of stages may follow; without any, all are run.
drive() {
  local type=$1
  shift
  cd "$work"
  # Inherited from a desktop, these would have another platform, or look, than the test knows.
  env -u QT_QPA_PLATFORM -u QT_QPA_PLATFORMTHEME -u QT_SCALE_FACTOR -u QT_STYLE_OVERRIDE \
    timeout 600 "$work/$type/window_test" "$work/$type/embed" data/mnist "$out" "$@" -v1
}

start_desktop
for type in Release Debug; do
  say "building in $type"
  build $type
done
say "driving the Release window through all of its life"
logged drive Release
say "driving the Debug window"
logged drive Debug opens starts draws_the_loss_while_it_falls pauses resumes stops closes_while_it_trains
say "all is well; screenshots are in $out"
