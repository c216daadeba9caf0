#!/bin/sh
# bundle.sh [--with-fixtures] [FOLDER] - make a relocatable folder (default build/bundle): the program, the shared libraries
# that a bare x86-64 machine with a recent glibc lacks, Lua files, busted, specs, examples and the haiku model. It asks
# for nothing on that machine: ./kigo haiku, ./test, ./test --tags=gpu. --with-fixtures adds the reference data of
# ../shared, so that all specs run there; the rest are pending without.
set -eu
cd "$(dirname "$0")/.."

die() {
  echo "bundle: $*" >&2
  exit 1
}

fixtures=""
if [ "${1-}" = --with-fixtures ]; then
  fixtures=yes
  shift
fi
out=${1:-build/bundle}
program=${KIGO:-build/kigo}
[ $# -le 1 ] || die "usage: bundle.sh [--with-fixtures] [FOLDER]"
[ -x "$program" ] || die "$program is not there: build first (scripts/build.sh)"
[ ! -e "$out" ] || [ -f "$out/bundle.txt" ] || die "$out is there, and no bundle: name another folder"
rm -rf "$out"
mkdir -p "$out/lib"
echo "kigo, relocatable: ./kigo haiku   ./kigo run MODEL   ./kigo bench MODEL   ./test [BUSTED OPTIONS]" >"$out/bundle.txt"

# The tree, so that specs and documents find what they name. The module and the host in C stand beside the program.
cp -R lua spec scripts examples engine README.md LICENSE .busted "$out/"
[ ! -d kernels ] || cp -R kernels "$out/"
built=$(dirname "$program")
for file in kigo kigo-worker kigo.so libkigo.so libkigo_cuda.so embed; do
  [ ! -e "$built/$file" ] || cp -L "$built/$file" "$out/"
done

# Shared libraries: all but glibc's own and the driver's.
for file in "$out"/kigo "$out"/kigo-worker "$out"/*.so "$out"/embed; do
  [ ! -e "$file" ] || ldd "$file"
done | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u | while read -r library; do
  case ${library##*/} in
    libc.so* | libm.so* | libdl.so* | librt.so* | libpthread.so* | libcuda.so* | libnvidia* | libcublas* | libkigo*) ;;
    # An older one of these in front of the machine's own breaks what else is loaded there, the driver above all.
    libstdc++* | libgcc_s*) die "${library##*/} would have to come along: link what needs it without it" ;;
    *) cp -L "$library" "$out/lib/" ;;
  esac
done

# busted and what it needs, where the program looks for modules; lua-cjson for receipts.
"$program" /dev/stdin "$out/lua" <<'LUA' || die "busted is not whole here (Debian: lua-busted, lua-cjson)"
local out = ...
local function copy(from, to)
  assert(os.execute(("mkdir -p '%s' && cp -RL '%s' '%s'"):format(to:match "^(.*)/", from, to)))
end
for _, name in ipairs { "busted", "luassert", "say", "cliargs", "mediator", "pl", "system", "term", "cjson" } do
  local file = package.searchpath(name, package.path) or package.searchpath(name .. ".init", package.path)
  if file and file:find "/init%.lua$" then
    copy(file:match "^(.*)/", out .. "/" .. name)
  elseif file then
    copy(file, out .. "/" .. name .. ".lua")
    os.execute(("[ ! -d '%s' ] || cp -RL '%s' '%s'"):format(file:sub(1, -5), file:sub(1, -5), out))
  end
end
for _, name in ipairs { "cjson", "lfs", "system.core", "term.core" } do
  local file = assert(package.searchpath(name, package.cpath))
  copy(file, out .. "/" .. name:gsub("%.", "/") .. ".so")
end
LUA
cp /usr/bin/busted "$out/scripts/busted.lua"

mkdir "$out/licences" # of what is not ours
for package in lua-busted lua-luassert lua-say lua-cliargs lua-mediator lua-penlight lua-filesystem lua-system lua-term \
  lua-cjson liblua5.4-0 libutf8proc2 libpcre2-8-0; do
  [ ! -r "/usr/share/doc/$package/copyright" ] || cp "/usr/share/doc/$package/copyright" "$out/licences/$package"
done

if [ -n "$fixtures" ]; then
  [ -d ../shared/fixtures ] || die "../shared/fixtures is not here"
  mkdir -p "$out/shared/haiku-model"
  cp -R ../shared/fixtures "$out/shared/"
  cp ../shared/haiku-model/*.gguf "$out/shared/haiku-model/"
  chmod -R u+w "$out/shared"
fi

cat >"$out/test" <<'EOT'
#!/bin/sh
# test [BUSTED OPTIONS] - run the specs with the program of this folder, e.g. ./test --tags=gpu or ./test spec/cpu_spec.lua
cd "$(dirname "$0")" || exit 1
case " $*" in
  *" --exclude-tags"*) ;;
  *" --tags"* | *" -t "*) set -- --exclude-tags=none "$@" ;; # what is asked for runs, whatever .busted leaves out
esac
KIGO=./kigo exec ./kigo scripts/busted.lua --output=plainTerminal "$@"
EOT
chmod +x "$out/test"

"$out/kigo" --version >>"$out/bundle.txt"
size=$(du -sm "$out" | cut -f 1)
echo "$out: $size MB" >&2
[ -n "$fixtures" ] || [ "$size" -lt 64 ] || die "that is more than 64 MB: build for fewer architectures (KIGO_CUDA_ARCHS)"
