#!/bin/sh
# run.sh BENCHES-FOLDER - all bench programs, one table: seconds of ours, of the floor, of the peer, and the ratio peer / ours (above 1: ours is
# faster). Peers run right beside ours: copies of the same bytes always, PyTorch, scikit-learn and Python's json when PEERS names a
# Python that has them; a peer that fails leaves its column empty. QUICK=1: about a minute; WORK: a folder on the disk to be measured
# (default: beside the programs); THREADS (default: all). Run apart: bench_gemm, `bench_memory` and `bench_kmeans` whole, methods.sh.
set -u
benches=$1
peer_scripts=$(cd "$(dirname "$0")/../peers" && pwd)
library=$(cd "$benches/../.." && pwd)/libmoedisco.so
threads=${THREADS:-$(nproc)}
peers=${PEERS:-}
LC_ALL=C
export LC_ALL
work=$(mktemp -d "${WORK:-$benches}/work.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
if [ "${QUICK:-0}" = 1 ]; then
    steps=1 torch=eager seconds=0.02 shapes="100000,384,16" surgery=90 corpus=16 cancel="1 $threads corpus-build" memory=1
else
    steps=3 torch=eager,compile seconds=0.15 shapes="100000,384,4 100000,384,64 1000000,64,16 1000000,64,64" surgery=460 corpus=64 cancel="6 $threads" memory=4
fi
failed=0

has() {
    [ -n "$peers" ] && "$peers" -c "import $1" 2> /dev/null && return
    echo "peer $1: not measured (PEERS names no Python that has it)"
    return 1
}
value() { # JSON-LINE FIELD
    printf '%s\n' "$1" | sed -n "s/.*\"$2\": \"\([^\"]*\)\".*/\1/p; t; s/.*\"$2\": \([^,}]*\).*/\1/p"
}
row() { # WHAT OURS FLOOR PEER NOTE, in seconds; empty or 0: not measured
    awk -v what="$1" -v ours="$2" -v floor="$3" -v peer="$4" -v note="$5" 'function s(x) {
            return x + 0 <= 0 ? "-" : x < 1e-3 ? sprintf("%.1f us", x * 1e6) : x < 1 ? sprintf("%.2f ms", x * 1e3) : sprintf("%.2f s", x) }
        BEGIN { printf "%-42s %10s %10s %10s %7s  %s\n", what, s(ours), s(floor), s(peer), (peer > 0 && ours > 0 ? sprintf("%.2fx", peer / ours) : "-"), note }'
}
ours() { # PROGRAM ARGUMENTS: its lines to $work/lines; a failure is told, and the table goes on
    program=$1
    shift
    "$benches/$program" "$@" > "$work/lines" 2> "$work/error" && return
    echo "$program failed: $(tail -n 1 "$work/error")"
    failed=1
}
peer() { # SCRIPT ARGUMENTS: its lines
    script=$1
    shift
    "$peers" "$peer_scripts/$script" "$@" 2> /dev/null
}
rows() { # of programs that print rows
    while IFS= read -r line; do
        row "$(value "$line" what)" "$(value "$line" ours)" "$(value "$line" floor)" "$(value "$line" peer)" "$(value "$line" note)"
    done < "$work/lines"
}

step() {
    : > "$work/torch"
    has torch && peer torch_step.py --threads "$threads" --steps $steps --how $torch > "$work/torch"
    ours bench_step "$threads" $steps
    while IFS= read -r line; do
        model=$(value "$line" model)
        for how in $(printf '%s' $torch | tr , ' '); do
            other=$(value "$(grep "\"$model\".* $how\"" "$work/torch")" median)
            row "training step, $model" "$(per_step "$(value "$line" median)")" 0 "$(per_step "${other:-0}")" \
                "$(value "$line" median) tokens/s, $(value "$line" gflops) GFLOP/s; peer: PyTorch $how"
        done
    done < "$work/lines"
}
per_step() { # TOKENS-PER-SECOND: seconds of a batch of 16 x 256
    awk -v rate="$1" 'BEGIN { print (rate > 0 ? 4096 / rate : 0) }'
}
kmeans() { # both sides by the referee, in turns, two threads each; without it ours alone
    has sklearn && both=1 || both=0
    for shape in $shapes; do
        # shellcheck disable=SC2046 # a shape is several words
        set -- $(printf '%s' "$shape" | tr , ' ')
        [ $both = 1 ] && line=$(peer sklearn_kmeans.py "$library" "$@" 5) && [ -n "$line" ] && {
            row "k-means, 5 iterations, $*" "$(value "$line" seconds)" 0 "$(value "$line" peer_seconds)" \
                "inertia ratio $(value "$line" inertia_ratio); peer: scikit-learn, 2 threads each"
            continue
        }
        ours bench_kmeans "$threads" "$@"
        line=$(cat "$work/lines")
        row "k-means iteration, $*" "$(value "$line" seconds_per_iteration)" "$(value "$line" floor_products)" 0 "$(value "$line" gflops) GFLOP/s"
    done
}
cancel() {
    # shellcheck disable=SC2086 # seconds, threads and perhaps a call
    ours bench_cancel $cancel
    while IFS= read -r line; do
        row "cancel, $(value "$line" call): 99th percentile" "$(awk -v ms="$(value "$line" p99_ms)" 'BEGIN { print ms / 1000 }')" 0 0 \
            "median $(value "$line" p50_ms) ms, longest $(value "$line" max_ms) ms, $(value "$line" count) requests"
    done < "$work/lines"
}
memory() {
    ours bench_memory "$threads" 0 $memory
    line=$(tail -n 1 "$work/lines")
    row "memory, $memory shapes" 0 0 0 "estimate off by at most $(value "$line" worst_to_peak) of the peak; wrong: $(value "$line" wrong)"
}

echo "threads $threads, $(date -u +%F); peer / ours above 1: ours is faster"
printf '%-42s %10s %10s %10s %7s  %s\n' what ours floor peer ratio note
step
ours bench_operations "$threads" $seconds && rows
kmeans
ours bench_surgery "$work" $surgery "$threads" && rows
has numpy && corpus_peer="$peers $peer_scripts/json_corpus.py" || corpus_peer=
ours bench_corpus "$work" $corpus "$threads" "$corpus_peer" && rows
cancel
memory
exit $failed
