#!/bin/sh
# Every example runs, prints what it is about, and meets a wrong use with one sentence and exit 2.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bin=$OUT/examples

# run NAME WORDS ARGUMENTS...: exit 0, and the output has the words
run() {
    name=$1 words=$2
    shift 2
    "$bin/$name" "$@" >"$work/out" || { echo "$name: exit $?"; exit 1; }
    grep -q "$words" "$work/out" || { echo "$name does not print \"$words\":"; cat "$work/out"; exit 1; }
}
# refuse NAME ARGUMENTS...: exit 2 and one line
refuse() {
    name=$1
    shift
    code=0
    "$bin/$name" "$@" >/dev/null 2>"$work/error" || code=$?
    if [ "$code" != 2 ] || [ "$(wc -l <"$work/error")" != 1 ]; then
        echo "$name $*: exit $code, and on standard error:"
        cat "$work/error"
        exit 1
    fi
}

"$OUT/moedisco" init "$work/base" --vocabulary 64 --hidden 16 --layers 2 --heads 2 --experts 4 --expert-width 24
run 01_layout mixtral "$work/base/config.json"
refuse 01_layout
refuse 01_layout "$work/none.json"
run 02_corpus "tokens" "$root/docs" "$work/corpus"
refuse 02_corpus
refuse 02_corpus "$work/none" "$work/corpus2"
run 03_cluster balanced
run 04_split_integrate drift
run 05_train "held out"
run 06_growth "expand from 8 to 16 experts"
run 07_both_methods "8 experts: loss"
refuse 06_growth now
for source in "$root"/examples/[0-9]*.c; do
    grep -q "$(basename "$source" .c)" "$0" || { echo "$source is not run here"; exit 1; }
done
