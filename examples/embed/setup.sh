#!/usr/bin/env bash
# Installs what this example needs beyond Tandem, from Debian 12's or Ubuntu 24.04's packages: Qt 6 with its charts; for
# the test an X server without a screen, a small window manager, a hand for mouse and keys, and a font.
# When nothing is missing it does nothing.
set -euo pipefail

# Packages, each with a file that it brings, so that looking costs no time.
packages=('qt6-base-dev=/usr/lib/*/cmake/Qt6Widgets/Qt6WidgetsConfig.cmake'
  'qt6-charts-dev=/usr/lib/*/cmake/Qt6Charts/Qt6ChartsConfig.cmake'
  'libqt6opengl6-dev=/usr/lib/*/cmake/Qt6OpenGL/Qt6OpenGLConfig.cmake' xvfb=/usr/bin/Xvfb
  blackbox=/usr/bin/blackbox xdotool=/usr/bin/xdotool 'fonts-inter=/usr/share/fonts/*/inter/*')

say() { echo "embed: $*" >&2; }

missing=()
for package in "${packages[@]}"; do
  compgen -G "${package#*=}" >/dev/null || missing+=("${package%%=*}")
done
((${#missing[@]})) || exit 0

as_root=(env DEBIAN_FRONTEND=noninteractive)
command -v apt-get >/dev/null || { say "install these first: ${missing[*]}"; exit 1; }
if [[ $EUID -ne 0 ]]; then
  if ! sudo -n true 2>/dev/null; then
    say "packages are missing; install them and run this again:"
    say "  sudo apt-get install --no-install-recommends ${missing[*]}"
    exit 1
  fi
  as_root=(sudo "${as_root[@]}")
fi
say "installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install=(apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=600 "${missing[@]}")
if ! { "${as_root[@]}" apt-get update && "${as_root[@]}" "${install[@]}"; } >"$log" 2>&1; then
  say "that has failed:"
  tail -n 20 "$log" >&2
  exit 1
fi
