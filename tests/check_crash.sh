#!/bin/sh
# check_crash.sh: a few kills and a few faults in every command that writes; `make crash` has them all. OUT is the build's directory.
# On a file system in memory where there is one: what is tested is what a kill leaves, not the disk.
[ -d /dev/shm ] && [ -w /dev/shm ] && TMPDIR=/dev/shm && export TMPDIR
exec "${OUT:?}/tests/crash/crash" "$OUT/moedisco" "$OUT/tests/faults/libfaults.so" brief
