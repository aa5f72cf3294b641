#!/usr/bin/env bash
# Installs the build into a fresh prefix and uses it from there as a stranger would.
#   install-test.sh BUILD_FOLDER CXX
set -euo pipefail
build=$1 cxx=$2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../../scripts/common.sh"
mpi_environment
unset CMAKE_CXX_COMPILER_LAUNCHER

trap 'printf "line %d failed: %s\n" $LINENO "$BASH_COMMAND" >&2' ERR
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$build" --prefix "$work/first" > "$work/install.log" || die "$(cat "$work/install.log")"
mv "$work/first" "$work/moved" # nothing may remember where it was installed
prefix=$work/moved
lib=$(dirname "$(find "$prefix" -name libdtr.so)")

say 'every app runs from the prefix'
for app in "$build"/apps/dtr_*; do
  [ -f "$app" ] && [ -x "$app" ] || continue
  "$prefix/bin/$(basename "$app")" --help > /dev/null
done

say 'no header of a detail folder is installed, and each installed one compiles alone'
[ -z "$(find "$prefix/include" -path '*/detail/*' -print)" ]
flags=$(PKG_CONFIG_PATH=$lib/pkgconfig pkg-config --cflags dtr)
export cxx flags prefix
(cd "$prefix/include" && find dtr -name '*.hpp' -print0) | xargs -0 -P "$(nproc)" -I{} bash -c \
  'echo "#include <{}>" | $cxx -std=c++20 -Wall -Wextra -Werror -fsyntax-only $flags -x c++ - || { echo "{} does not stand alone"; exit 255; }'

say 'find_package(dtr), shared'
cmake -S "$here/outside" -B "$work/shared" -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_PREFIX_PATH="$prefix" > "$work/log" || die "$(cat "$work/log")"
cmake --build "$work/shared" > "$work/log" || die "$(cat "$work/log")"
"$work/shared/outside"
linked=$(ldd "$work/shared/outside")
grep -qF "$lib/libdtr.so.0" <<< "$linked" || die "not linked against $lib/libdtr.so.0: $linked"

say 'find_package(dtr COMPONENTS static)'
cmake -S "$here/outside" -B "$work/static" -DSTATIC=ON -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_PREFIX_PATH="$prefix" > "$work/log" || die "$(cat "$work/log")"
cmake --build "$work/static" > "$work/log" || die "$(cat "$work/log")"
"$work/static/outside"
linked=$(ldd "$work/static/outside")
! grep -qF libdtr.so <<< "$linked" || die "linked against the shared library: $linked"

say 'pkg-config dtr'
# shellcheck disable=SC2046
"$cxx" -std=c++20 "$here/outside/main.cpp" -o "$work/by-pkg-config" \
  $(PKG_CONFIG_PATH=$lib/pkgconfig pkg-config --cflags --libs dtr) -Wl,-rpath,"$lib"
"$work/by-pkg-config"

say 'the shared library exports dtr::v0 and nothing else'
exported=$(nm -D --defined-only "$lib/libdtr.so" | awk '$2 != "A" { print $3 }')
grep -q '^_ZN3dtr2v0' <<< "$exported" || die 'exports nothing of dtr::v0'
strangers=$(grep -vE '3dtr2v0' <<< "$exported" || true)
[ -z "$strangers" ] || die "exports $strangers"
