#!/usr/bin/env bash
# Looks at the links of all pages, and makes the API reference, build/docs/html/index.html. Fails when the headers leave
# something undocumented, and for every other warning of Doxygen's; the log of a run is build/docs/doxygen.log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/links.py || {
  echo "tandem: pages have links that lead nowhere" >&2
  exit 1
}
command -v doxygen >/dev/null || {
  echo "tandem: doxygen is missing; install it: apt-get install --no-install-recommends doxygen" >&2
  exit 1
}
rm -rf build/docs  # pages of what is gone
mkdir -p build/docs
if ! doxygen docs/Doxyfile >build/docs/doxygen.log 2>&1 || grep -Eq '(warning|error): ' build/docs/doxygen.log; then
  sed "s#^$PWD/##" build/docs/doxygen.log >&2
  echo "tandem: the API reference has warnings" >&2
  exit 1
fi
echo "tandem: the API reference is in $PWD/build/docs/html/index.html"
