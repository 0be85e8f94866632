#!/usr/bin/env bash
# Checks the scripts and option files here, without a GPU: one switch a line, no comment, no blank line (nsys stops
# reading at the one and fails at the other, without saying so); where the tool is installed, that it knows the switches;
# and, with a tool that only notes how it is called, which program the scripts have it follow.
# profiles/check.sh [FOLDER]
set -euo pipefail
cd "${1:-$(dirname "${BASH_SOURCE[0]}")}"
failed=0

wrong() {
  echo "profiles/$*" >&2
  failed=1
}

check_lines() {
  local file=$1 number=0 line
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    [[ $line =~ ^--[a-z][a-z0-9-]*(=[^[:space:]#]+)?$ ]] || wrong "$file:$number: '$line' is no switch of the form --name=value"
  done <"$file"
  ((number > 0)) || wrong "$file: has no switches"
}

# check_known FILE HELP COMMAND...: that the help names each switch.
check_known() {
  local file=$1 help=$2 name
  while IFS= read -r name; do
    grep -qE -e "$name([^a-z-]|$)" <<<"$help" || wrong "$file: $3 does not know $name"
  done < <(grep -oE '^--[a-z0-9-]+' "$file" | sort -u)
}

for file in nsys.options ncu.options; do
  [[ -e $file ]] && check_lines "$file" || wrong "$file: is missing"
done
for script in *.sh; do
  bash -n "$script" || wrong "$script: see above"
done
if command -v nsys >/dev/null; then check_known nsys.options "$(nsys profile --help)" nsys; fi
if command -v ncu >/dev/null; then check_known ncu.options "$(ncu --help)" ncu; fi

# check_followed SCRIPT TOOL ENDING OPTION: that SCRIPT gives the program to TOOL behind its options, and never ./train.
check_followed() {
  local script=$1 tool=$2 ending=$3 option=$4 said called=$fakes/called
  [[ -e $script ]] || return 0
  cat >"$fakes/$tool" <<FAKE
#!/bin/sh
echo "\$*" >>"$called"
touch "$fakes/report.$ending"
FAKE
  chmod +x "$fakes/$tool"
  : >"$called"
  said=$(PATH=$fakes:$PATH TANDEM_PROFILE=$fakes/report "./$script" build/apps/train --gpus 2 2>&1) ||
    wrong "$script: fails with a program: $said"
  [[ $(head -n 1 "$called") == *"$option"*" build/apps/train --gpus 2" ]] ||
    wrong "$script: $tool is called with '$(head -n 1 "$called")'"
  : >"$called"
  if said=$(PATH=$fakes:$PATH "./$script" ../train --gpus 2 2>&1); then wrong "$script: takes ./train"; fi
  [[ $said == *"build/apps/train"* && ! -s $called ]] || wrong "$script: does not say what to give for ./train: $said"
}
fakes=$(mktemp -d)
trap 'rm -rf "$fakes"' EXIT
check_followed profile-nsys.sh nsys nsys-rep nsys.options
check_followed profile-ncu.sh ncu ncu-rep "$(head -n 1 ncu.options)"
exit "$failed"
