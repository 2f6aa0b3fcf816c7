#!/bin/sh
# Two programs outside the tree, built by pkg-config against what `make install` puts into a DESTDIR, headers and command into
# places with a blank in their names; then uninstall leaves nothing.
# OUT, CC, CXX and MAKE come from the Makefile, whose own settings reach the inner make through MAKEFLAGS.
cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d "${TMPDIR:-/tmp}/moedisco-install-XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
fail() { echo "$*"; exit 1; }
make=${MAKE:-make} root=$work/root outside=$work/outside include='/usr/in clude'
. tests/outside/flags.sh

$make --no-print-directory install CUDA=0 DESTDIR="$root" INCLUDEDIR="$include" BINDIR='/usr/the bin' >"$work/log" 2>&1 || { cat "$work/log"; fail 'make install'; }
pc=$(find "$root" -name moedisco.pc)
[ -n "$pc" ] || fail 'no moedisco.pc was installed'
PKG_CONFIG_SYSROOT_DIR=$root PKG_CONFIG_PATH=$(dirname "$pc")
export PKG_CONFIG_SYSROOT_DIR PKG_CONFIG_PATH
[ "$(pkg-config --modversion moedisco)" = "$(sed -n 's/^VERSION *:= *//p' Makefile)" ] || fail 'moedisco.pc has another version'
libdir=$(dirname "$(dirname "$pc")") flags=$(pkg-config --cflags moedisco)
extra=$(sanitizer "$libdir/libmoedisco.so")

# the sources alone, so that nothing of the tree is found by accident
mkdir "$outside" && cp tests/outside/*.c tests/outside/*.cpp "$outside" && cd "$outside" || exit 1
shared=$(pkg-config --libs moedisco) # blanks stand behind backslashes, which the shell is to read: eval
static=$(pkg-config --static --libs moedisco | sed 's/-lmoedisco/-l:libmoedisco.a/')
eval "${CC:-cc} -std=c99 -pedantic -Wall -Wextra -Werror $extra $flags -o kmeans kmeans_alone.c $shared" || fail 'C, shared'
eval "${CC:-cc} -std=c99 -pedantic -Wall -Wextra -Werror $extra $flags -o kmeans-static kmeans_alone.c $static" || fail 'C, static'
eval "${CXX:-c++} -std=c++11 -pedantic -Wall -Wextra -Werror $extra $flags -o surgery borrowed_surgery.cpp $shared" || fail 'C++, shared'
readelf -d kmeans-static | grep -q libmoedisco && fail 'the static program still asks for libmoedisco.so'
LD_LIBRARY_PATH=$libdir ./kmeans || fail 'kmeans_alone, shared'
./kmeans-static || fail 'kmeans_alone, static'
LD_LIBRARY_PATH=$libdir ./surgery || fail 'borrowed_surgery'
cd "$OLDPWD" || exit 1

$make --no-print-directory uninstall CUDA=0 DESTDIR="$root" INCLUDEDIR="$include" BINDIR='/usr/the bin' >"$work/log" 2>&1 || { cat "$work/log"; fail 'make uninstall'; }
left=$(find "$root" ! -type d)
[ -z "$left" ] || fail "uninstall left $left"
[ ! -e "$root$include/moedisco" ] || fail 'uninstall left the header directory'
