#!/bin/sh
# test.sh [BUSTED OPTIONS] - pass the tests: luacheck, our lint, the specs, and the core's specs again in a build with
# warnings as errors, AddressSanitizer and UndefinedBehaviorSanitizer. The last line is "N passed, N failed".
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
KIGO_BUILD_SANITIZED=1 sh scripts/build.sh lua5.4 lua-busted lua-check

passed=0
failed=0
log=$(mktemp)
ended=$(mktemp)
trap 'rm -f "$log" "$ended"' EXIT
trap 'exit 130' HUP INT TERM

specs() { # specs PROGRAM [BUSTED OPTIONS]: run busted inside the program, show its words, add its counts
  program=$1
  shift
  { KIGO="$program" "$program" /usr/bin/busted --output=plainTerminal "$@" 2>&1 && echo 0 >"$ended" || echo $? >"$ended"; } | tee "$log"
  status=$(cat "$ended")
  summary=$(sed -n 's|^\([0-9]*\) success[a-z]* / \([0-9]*\) failure[s]* / \([0-9]*\) error[s]* / .*|\1 \2 \3|p' "$log" | tail -n 1)
  # A run that ends without its summary, or badly with a clean one, crashed: that is a failure, never a pass.
  # shellcheck disable=SC2086 # three numbers
  set -- ${summary:-0 0 1}
  bad=$(($2 + $3))
  if [ "$status" != 0 ] && [ "$bad" = 0 ]; then
    echo "busted ended with status $status"
    bad=1
  fi
  passed=$((passed + $1))
  failed=$((failed + bad))
}

echo "== luacheck"
if luacheck --quiet lua scripts spec examples; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
echo "== lint"
if ./build/kigo scripts/lint.lua; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
echo "== specs"
specs ./build/kigo "$@"
echo "== specs of the core, sanitized"
ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
  specs ./build-sanitized/kigo --exclude-tags=slow,unsanitized "$@"

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
