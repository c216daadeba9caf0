#!/bin/sh
# spec.sh PROGRAM COUNTS FILE [BUSTED OPTIONS]: run one spec file with busted inside the program, show its words in one piece,
# and append "PASSED FAILED" to COUNTS. test.sh runs several of these at once.
set -u
program=$1
counts=$2
file=$3
shift 3
log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'exit 130' HUP INT TERM

KIGO="$program" "$program" /usr/bin/busted --output=plainTerminal "$@" "$file" >"$log" 2>&1
status=$?
summary=$(sed -n 's|^\([0-9]*\) success[a-z]* / \([0-9]*\) failure[s]* / \([0-9]*\) error[s]* / .*|\1 \2 \3|p' "$log" | tail -n 1)
# A run that ends without its summary, or badly with a clean one, crashed: that is a failure, never a pass.
# shellcheck disable=SC2086 # three numbers
set -- ${summary:-0 0 0}
bad=$(($2 + $3))
if [ "$bad" = 0 ] && { [ -z "$summary" ] || [ "$status" != 0 ]; }; then
  echo "busted ended with status $status" >>"$log"
  bad=1
fi
(
  flock 9
  echo "-- $file"
  cat "$log"
  echo "$1 $bad" >>"$counts"
) 9>>"$counts"
