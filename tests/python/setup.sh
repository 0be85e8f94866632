#!/usr/bin/env bash
# Prints the path of a Python that has what requirements.txt lists: usage: tests/python/setup.sh ENVIRONMENT
# Makes the virtual environment there, or anew when the list has changed; otherwise it does next to nothing. Safe to
# interrupt and to run several times at once.
set -euo pipefail
requirements=$(dirname "${BASH_SOURCE[0]}")/requirements.txt
environment=${1:?usage: tests/python/setup.sh ENVIRONMENT}
mkdir -p "$(dirname "$environment")"
exec 9>"$environment.lock"
flock 9
if ! cmp -s "$requirements" "$environment/requirements.txt"; then
  rm -rf "$environment"
  {
    python3 -m venv "$environment"
    "$environment/bin/pip" install --disable-pip-version-check --retries 5 --no-compile -r "$requirements"
  } >"$environment.log" 2>&1 || {
    tail -n 20 "$environment.log" >&2
    echo "tandem: the tests' Python packages could not be installed; the whole log is in $environment.log" >&2
    exit 1
  }
  cp "$requirements" "$environment/requirements.txt" # last: it says that the rest is there
fi
echo "$environment/bin/python"
