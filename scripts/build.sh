#!/bin/sh
# build.sh [PACKAGE...] - install what is missing (Debian's packages, when allowed) and build kigo into build/.
# haiku.sh and test.sh call it; test.sh names the packages that only development needs and asks, by
# KIGO_BUILD_SANITIZED=1, for a sanitized build in build-sanitized/ too.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'exit 130' HUP INT TERM

# quiet WHAT COMMAND...: run the command; only where it fails are its words shown.
quiet() {
  what=$1
  shift
  "$@" >"$log" 2>&1 && return
  cat "$log" >&2
  echo "kigo: $what failed; its words are above" >&2
  exit 1
}

packages="gcc libc6-dev cmake make pkg-config liblua5.4-dev lua-cjson libutf8proc-dev libpcre2-dev $*"

missing=""
if command -v dpkg-query >/dev/null 2>&1; then
  for package in $packages; do
    status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || missing="$missing $package"
  done
elif ! { command -v cmake && command -v cc && pkg-config --exists lua5.4 libutf8proc libpcre2-8; } >/dev/null 2>&1; then
  echo "kigo: this is not a Debian system: install the equivalents of these packages and call me again:" >&2
  echo "  $packages" >&2
  exit 1
fi

if [ -n "$missing" ]; then
  install="apt-get install -y --no-install-recommends$missing"
  if [ "$(id -u)" = 0 ]; then
    as_root=""
  elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root="sudo"
  else
    echo "kigo: these packages are missing, and I may not install them. As root:" >&2
    echo "  apt-get update && $install" >&2
    exit 1
  fi
  echo "Installing:$missing" >&2
  # Without a network the package lists that are there may do: what cannot be installed says so.
  $as_root apt-get update >"$log" 2>&1 || cat "$log" >&2
  # shellcheck disable=SC2086 # a command and a list of packages
  quiet "installing packages" $as_root env DEBIAN_FRONTEND=noninteractive $install
fi

jobs=$(nproc 2>/dev/null || echo 2)
build() { # build FOLDER [CMAKE OPTION...]
  folder=$1
  shift
  # A folder that was copied or moved remembers where it was configured, and CMake refuses it: begin anew.
  configured=$(sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "$folder/CMakeCache.txt" 2>/dev/null || true)
  [ -z "$configured" ] || [ "$configured" -ef . ] || rm -rf "$folder/CMakeCache.txt" "$folder/CMakeFiles"
  quiet "configuring $folder" cmake -S . -B "$folder" "$@"
  quiet "the build in $folder" cmake --build "$folder" -j "$jobs"
}

[ -x build/kigo ] || echo "Building kigo (the first time takes about a minute on two cores; with nvcc, about three) ..." >&2
build build
if [ -n "${KIGO_BUILD_SANITIZED-}" ]; then
  [ -x build-sanitized/kigo ] || echo "Building kigo with AddressSanitizer and UndefinedBehaviorSanitizer ..." >&2
  build build-sanitized -DKIGO_SANITIZE=ON -DKIGO_WERROR=ON
fi
