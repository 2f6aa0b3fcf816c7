#!/bin/sh
# run.sh fuzz SECONDS PROGRAM...: each fuzz target for so long, from tests/fuzz/corpus/NAME and what earlier runs found
# (OUT/fuzz/NAME); stops at the first finding and says where its input is. FUZZ_ARGS: more for libFuzzer.
# run.sh merge 0 PROGRAM...: adds to tests/fuzz/corpus/NAME what reaches code that its files do not.
here=$(cd "$(dirname "$0")" && pwd)
mode=$1 seconds=$2
shift 2
TMPDIR=$(mktemp -d /dev/shm/moedisco-fuzz-XXXXXX 2>/dev/null || mktemp -d) || exit 1
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
trap 'exit 130' INT TERM
for program in "$@"; do
    name=$(basename "$program") kept=$here/corpus/$(basename "$program") found=$OUT/fuzz/$(basename "$program")
    mkdir -p "$found" "$kept" "$OUT/fuzz/findings"
    if [ "$mode" = merge ]; then
        "$program" -merge=1 -set_cover_merge=1 -max_len=12288 "$kept" "$found" >"$OUT/fuzz/$name.log" 2>&1
    else
        # shellcheck disable=SC2086
        "$program" -max_total_time="$seconds" -max_len=12288 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
            -artifact_prefix="$OUT/fuzz/findings/$name-" ${FUZZ_ARGS:-} "$found" "$kept" >"$OUT/fuzz/$name.log" 2>&1
    fi || { tail -40 "$OUT/fuzz/$name.log"; echo "$name: a finding, input in $OUT/fuzz/findings"; exit 1; }
    echo "$name: $(grep -aE 'number_of_executed_units|new_units_added|MERGE-OUTER: [0-9]+ new' "$OUT/fuzz/$name.log" | sed 's/.*:: *\|MERGE-OUTER: //' | tr '\n' ' ')"
done
