#!/bin/sh
# run.sh BENCHES-FOLDER - all bench programs, one table: seconds of ours, of the floor, of the peer, and the ratio peer / ours (above 1: ours is
# faster). Peers run right after ours: copies of the same bytes always, PyTorch and scikit-learn when PEERS names a Python that has
# them. QUICK=1: about a minute; WORK: a folder on the disk to be measured (default: a temporary one here); THREADS (default: all).
set -u
benches=$1
here=$(cd "$(dirname "$0")" && pwd)
threads=${THREADS:-$(nproc)}
peers=${PEERS:-}
LC_ALL=C
export LC_ALL
work=$(mktemp -d "${WORK:-.}/bench.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
if [ "${QUICK:-0}" = 1 ]; then steps=2 seconds=0.02 surgery=90 corpus=16; else steps=5 seconds=0.15 surgery=460 corpus=64; fi

has() { [ -n "$peers" ] && "$peers" -c "import $1" 2> /dev/null; }
has torch && torch=1 || torch=0
has sklearn && sklearn=1 || sklearn=0
[ $torch = 1 ] || echo "peer PyTorch: not measured (PEERS names no Python that has torch)"
[ $sklearn = 1 ] || echo "peer scikit-learn: not measured (PEERS names no Python that has sklearn)"

value() { # JSON-LINE FIELD
    printf '%s\n' "$1" | sed -n "s/.*\"$2\": \"\{0,1\}\([^\",}]*\).*/\1/p"
}
row() { # WHAT OURS FLOOR PEER NOTE, in seconds
    awk -v what="$1" -v ours="$2" -v floor="$3" -v peer="$4" -v note="$5" 'function s(x) {
            return x + 0 <= 0 ? "-" : x < 1e-3 ? sprintf("%.1f us", x * 1e6) : x < 1 ? sprintf("%.2f ms", x * 1e3) : sprintf("%.2f s", x) }
        BEGIN { printf "%-42s %10s %10s %10s %7s  %s\n", what, s(ours), s(floor), s(peer), (peer + 0 > 0 ? sprintf("%.2fx", peer / ours) : "-"), note }'
}
rows() { # of programs that print rows
    while IFS= read -r line; do
        row "$(value "$line" what)" "$(value "$line" ours)" "$(value "$line" floor)" "$(value "$line" peer)" \
            "$(printf '%s\n' "$line" | sed -n 's/.*"note": "\([^"]*\)".*/\1/p')"
    done
}
say() { printf '%-42s %10s %10s %10s %7s  %s\n' "$@"; }

echo "threads $threads, $(date -u +%F); peer / ours above 1: ours is faster"
say what ours floor peer ratio note
"$benches/bench_step" "$threads" $steps > "$work/step" || exit 1
[ $torch = 1 ] && "$peers" "$here/../peers/torch_step.py" --threads "$threads" --steps $steps --how eager > "$work/torch"
while IFS= read -r line; do
    model=$(value "$line" model)
    ours=$(value "$line" median)
    peer=0
    [ $torch = 1 ] && peer=$(value "$(grep "\"$model\"" "$work/torch" | head -n 1)" median)
    row "training step, $model" "$(awk -v t="$ours" 'BEGIN { print 4096 / t }')" 0 "$(awk -v t="${peer:-0}" 'BEGIN { print t > 0 ? 4096 / t : 0 }')" \
        "$ours tokens/s, $(value "$line" gflops) GFLOP/s; peer: PyTorch eager"
done < "$work/step"
"$benches/bench_operations" "$threads" $seconds > "$work/operations" || exit 1
rows < "$work/operations"
if [ -x "$benches/bench_kmeans" ]; then
    for shape in "100000 384 16" "100000 384 64"; do
        # shellcheck disable=SC2086
        line=$("$benches/bench_kmeans" "$threads" $shape) || exit 1
        row "k-means iteration, $shape" "$(value "$line" seconds_per_iteration)" "$(value "$line" floor_products)" 0 "$(value "$line" gflops) GFLOP/s"
    done
fi
"$benches/bench_surgery" "$work" $surgery "$threads" > "$work/surgery" || exit 1
rows < "$work/surgery"
"$benches/bench_corpus" "$work" $corpus "$threads" > "$work/corpus" || exit 1
rows < "$work/corpus"
[ "${QUICK:-0}" = 1 ] || [ ! -x "$benches/bench_gemm" ] || "$benches/bench_gemm" "$threads"
