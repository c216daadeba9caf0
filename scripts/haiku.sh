#!/bin/sh
# haiku.sh [OPTIONS] - the main job: build kigo if need be, then let a real model write a haiku and prove that it did.
# Without --model FILE the bundled model writes. `sh scripts/haiku.sh --help` lists the options.
set -eu
here=$(dirname -- "$0")
sh "$here/build.sh"
exec "$here/../build/kigo" "$here/haiku.lua" "$@"
