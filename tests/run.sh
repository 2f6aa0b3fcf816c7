#!/bin/sh
# run.sh PROGRAM...: runs the test programs and the test scripts, one line each, what failed in full, and a closing count.
# OUT, CC, CXX and MAKE come from the Makefile. With RUN, a command that programs are run under, the scripts are left out.
here=$(dirname "$0")
work=$(mktemp -d "${TMPDIR:-/tmp}/moedisco-check-XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
TMPDIR=$work; export TMPDIR OUT CC CXX MAKE
passed=0 failed=0
one() { # name command...
    name=$1; shift
    start=$(date +%s)
    if "$@" >"$work/log" 2>&1; then
        passed=$((passed + 1)); printf 'ok    %-28s %3ds\n' "$name" $(($(date +%s) - start))
    else
        code=$?; failed=$((failed + 1)); printf 'FAIL  %-28s exit %d\n' "$name" $code; sed 's/^/      /' "$work/log" | tail -60
    fi
}
# shellcheck disable=SC2086
for program in "$@"; do one "$(basename "$program")" ${RUN:-} "$program"; done
[ -n "${RUN:-}" ] || for script in "$here"/headers.sh "$here"/abi.sh "$here"/install.sh "$here"/check_*.sh; do
    if [ -e "$script" ]; then one "$(basename "$script")" sh "$script"; fi
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
