#!/bin/sh
# run.sh TEST...: runs test programs and test scripts (*.sh), one line each, what failed in full, and a closing count.
# OUT, CC, CXX and MAKE come from the Makefile; RUN is a command that programs are run under.
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
for test in "$@"; do
    case $test in
        *.sh) one "$(basename "$test")" sh "$test" ;;
        # shellcheck disable=SC2086
        *) one "$(basename "$test")" ${RUN:-} "$test" ;;
    esac
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
