#!/bin/sh
# test.sh [BUSTED OPTIONS] [SPEC FILES] - pass the tests: luacheck, our lint, the specs, and the core's specs again in a
# build with warnings as errors, AddressSanitizer and UndefinedBehaviorSanitizer. Every spec file is a process of its own.
# The last line is "N passed, N failed".
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
KIGO_BUILD_SANITIZED=1 sh scripts/build.sh lua5.4 lua-busted lua-check

files=""
for argument in "$@"; do
  shift
  if [ -f "$argument" ]; then files="$files $argument"; else set -- "$@" "$argument"; fi
done
[ -n "$files" ] || files=$(ls spec/*_spec.lua)

counts=$(mktemp) # "PASSED FAILED", a line for each spec file
trap 'rm -f "$counts"' EXIT
trap 'exit 130' HUP INT TERM

specs() { # specs PROGRAM [BUSTED OPTIONS]: all spec files, as many at once as there are processors
  program=$1
  shift
  # shellcheck disable=SC2086 # names of ours, without blanks
  printf '%s\n' $files | xargs -P "$(nproc 2>/dev/null || echo 2)" -I '{}' sh scripts/spec.sh "$program" "$counts" '{}' "$@"
}

check() { # check COMMAND...: counts as one test
  if "$@"; then echo "1 0" >>"$counts"; else echo "0 1" >>"$counts"; fi
}

echo "== luacheck"
check luacheck --quiet lua scripts spec examples
echo "== lint"
check ./build/kigo scripts/lint.lua
echo "== specs"
specs ./build/kigo "$@"
echo "== specs of the core, sanitized"
ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
  specs ./build-sanitized/kigo --exclude-tags=slow,unsanitized "$@"

# shellcheck disable=SC2086
runs=$((2 + 2 * $(printf '%s\n' $files | wc -l)))
awk -v runs=$runs '{ passed += $1; failed += $2 } END {
  if (NR < runs) print runs - NR " spec files left no result"
  failed += runs - NR
  print passed " passed, " failed " failed"
  exit failed > 0
}' "$counts"
