#!/usr/bin/env bash
# Runs a script with the packages of requirements.txt: usage: tests/python/run.sh ENVIRONMENT SCRIPT [ARGUMENT...]
set -euo pipefail
python=$("$(dirname "${BASH_SOURCE[0]}")/setup.sh" "$1")
shift
exec "$python" "$@"
