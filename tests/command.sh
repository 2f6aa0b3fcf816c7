#!/bin/sh
# command.sh - sourced by the scripts that drive the command: a folder of its own with text in it, and the checks. OUT is the
# build's directory.
set -u
LC_ALL=C
export LC_ALL
moedisco=${OUT:?}/moedisco
work=$(mktemp -d "${TMPDIR:-/tmp}/moedisco-command-XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failed=0
wrong() { echo "WRONG: $*"; failed=1; }
# expect CODE ARGUMENTS...: the exit code; output in out and err
expect() {
    code=$1
    shift
    "$moedisco" "$@" > out 2> err
    got=$?
    [ "$got" = "$code" ] || { wrong "exit $got instead of $code: moedisco $*"; cat err; }
}
# refuse CODE TEXT ARGUMENTS...: one line on standard error that begins with moedisco: and holds TEXT
refuse() {
    text=$2
    code=$1
    shift 2
    expect "$code" "$@"
    [ "$(wc -l < err)" = 1 ] || { wrong "not one line on standard error: moedisco $*"; cat err; }
    grep -q '^moedisco: ' err || wrong "no 'moedisco: ' before: $(cat err)"
    grep -q -e "$text" err || wrong "'$text' is not in: $(cat err)"
}
same() { cmp -s "$1" "$2" || wrong "$1 and $2 differ: $3"; }
has() { grep -q -e "$2" "$1" || { wrong "'$2' is not in $1:"; head -5 "$1"; }; }

# ---- text: four kinds of documents ----
mkdir text
lines() { awk -v i="$1" "BEGIN { for (n = 0; n < 30; n++) printf $2 }"; } # 30 lines of document i; awk's format and arguments
i=0
while [ $i -lt 60 ]; do
    lines $i '"int f%d(int a) { return a * %d + %d; }\n", i * 30 + n, n, i' > text/$i.c
    lines $i '"The %d sheep of farm %d sleep under the old tree.\n", n, i' > text/$i.txt
    lines $i '"%d;%d;%d;%d\n", i, n, i * n, i + n' > text/$i.csv
    lines $i '"<li><a href=\"%d.html\">PAGE %d</a></li>\n", i, n' > text/$i.html
    i=$((i + 1))
done
