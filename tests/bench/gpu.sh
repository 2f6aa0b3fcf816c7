#!/bin/sh
# gpu.sh OUT [ROW...] - what a GPU is measured by, one table: ours, the floor, the peer, and the ratio peer / ours (above 1: ours is faster or
# smaller). OUT: the build's directory, or a folder made by `make gpu-pack`. Rows: operations (products, attention, grouped linear, loss
# head, k-means), step (training), step-lean (the same with the lean policy), all of these where none is named. PEERS: a Python with PyTorch for CUDA and
# Transformers; without it the peers' column stays empty. MOED_TEST_DEVICE (cuda:0), STEPS (10), ROUNDS (3) of the operations, MODELS.
# Memory is the card's, by nvidia-smi ten times a second, less what was in use before the program began: the same for both sides, with
# the driver's context and what allocators hold back. The allocator's own peak stands in the note.
set -u
LC_ALL=C
export LC_ALL
out=$(cd "${1:?the directory of the build}" && pwd) || exit 1
shift
rows=${*:-operations step step-lean}
benches=$out/tests/bench
scripts=$(cd "$(dirname "$0")/../peers" && pwd)
device=${MOED_TEST_DEVICE:-cuda:0}
peers=${PEERS:-}
steps=${STEPS:-10}
models=${MODELS:-qwen-dense qwen-4 qwen-64}
[ -d "$out/lib" ] && LD_LIBRARY_PATH=$out/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
if [ -n "$peers" ]; then # the same cuBLAS and cuDNN on both sides
    theirs=$("$peers" -c 'import glob, site; print(":".join(d for s in site.getsitepackages() for d in glob.glob(s + "/nvidia/*/lib")))' 2> /dev/null)
    [ -n "$theirs" ] && LD_LIBRARY_PATH=$theirs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}"
line=$("$out/moedisco" info | grep "^device $device ")
case $line in
'' | *'not usable'*) echo "bench-gpu: nothing was measured, for there is no GPU to measure on: ${line:-no device $device}"; exit 2 ;;
esac
work=$(mktemp -d "${TMPDIR:-/tmp}/gpu.XXXXXX") || exit 1
watcher=
trap '[ -n "$watcher" ] && kill "$watcher" 2> /dev/null; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
failed=0
if [ -n "$peers" ] && ! "$peers" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then
    echo "peers: not measured ($peers has no PyTorch with a GPU)"
    peers=
fi

value() { # JSON-LINE FIELD
    printf '%s\n' "$1" | sed -n "s/.*\"$2\": \"\([^\"]*\)\".*/\1/p; t; s/.*\"$2\": \([^,}]*\).*/\1/p"
}
row() { # WHAT OURS FLOOR PEER NOTE [UNIT]: seconds, or numbers of UNIT; empty or 0: not measured
    awk -v what="$1" -v ours="$2" -v floor="$3" -v peer="$4" -v note="$5" -v unit="${6:-}" 'function s(x) {
            return x + 0 <= 0 ? "-" : unit != "" ? sprintf("%.1f %s", x, unit) : x < 1e-3 ? sprintf("%.1f us", x * 1e6) : x < 1 ? sprintf("%.2f ms", x * 1e3) : sprintf("%.2f s", x) }
        BEGIN { printf "%-38s %10s %10s %10s %7s  %s\n", what, s(ours), s(floor), s(peer), (peer > 0 && ours > 0 ? sprintf("%.2fx", peer / ours) : "-"), note }'
}
tell() { # of programs that print rows
    while IFS= read -r line; do
        row "$(value "$line" what)" "$(value "$line" ours)" "$(value "$line" floor)" "$(value "$line" peer)" "$(value "$line" note)"
    done < "$work/rows"
}

# COMMAND: its lines to $work/lines; $memory is then the GiB that the card held beside what it held before
watched() {
    card=${device#*:}
    nvidia-smi -i "$card" --query-gpu=memory.used --format=csv,noheader,nounits -lms 100 > "$work/used" 2> /dev/null &
    watcher=$!
    sleep 1
    "$@" > "$work/lines" 2> "$work/error" || {
        echo "$(basename "$1") failed: $(tail -n 1 "$work/error")"
        failed=1
    }
    kill "$watcher" 2> /dev/null
    wait "$watcher" 2> /dev/null
    watcher=
    memory=$(awk 'NR == 1 { first = $1 } $1 > most { most = $1 } END { printf "%.2f", (most - first) / 1024 }' "$work/used")
    sleep 1
}

operations() {
    if [ -n "$peers" ]; then
        "$peers" "$scripts/torch_cuda_operations.py" "$benches/bench_device" "$device" --rounds "${ROUNDS:-3}" > "$work/rows" 2> "$work/error" || failed=1
    else
        "$benches/bench_device" "$device" > "$work/rows" 2> "$work/error" || failed=1
    fi
    cat "$work/error"
    tell
}

# MODEL POLICY STATE-OF-THE-PEER
step() {
    watched "$benches/bench_step" 0 "$steps" "$device" "$2" "$1"
    ours=$(cat "$work/lines") our_memory=$memory
    [ "$(value "$ours" policy)" = "$2" ] || { echo "step, $1: bench_step does not tell the policy $2"; [ "$2" = full ] || return; }
    theirs='' their_memory=0
    if [ -n "$peers" ]; then
        watched "$peers" "$scripts/torch_cuda_step.py" --model "$1" --state "$3" --steps "$steps"
        theirs=$(cat "$work/lines") their_memory=$memory
        [ -n "$(value "$theirs" error)" ] && echo "peer: $(value "$theirs" error)"
    fi
    rate=$(value "$ours" median) other=$(value "$theirs" median)
    row "step, $1, $2" "$(seconds "$rate")" "$(floor "$ours")" "$(seconds "$other")" \
        "${rate:-0} tokens/s, $(value "$ours" gflops) GFLOP/s; peer ${other:-0} tokens/s, compiled, $3"
    row "memory, $1, $2" "$our_memory" 0 "$their_memory" \
        "peer $3, its allocator: tensors $(value "$theirs" allocated_gib), held $(value "$theirs" reserved_gib)" GiB
}
seconds() { # TOKENS-PER-SECOND: of a batch of 16 x 1024
    awk -v rate="${1:-0}" 'BEGIN { print (rate > 0 ? 16384 / rate : 0) }'
}
floor() { # JSON-LINE: the model's arithmetic at the rate of the largest product measured here
    awk -v gflops="$(value "$1" gflops)" -v rate="$(value "$1" median)" -v product="$product" \
        'BEGIN { print (rate > 0 && product > 0 ? gflops * 16384 / rate / (product * 1e3) : 0) }'
}

echo "$line"
product=$("$benches/bench_device" "$device" product 2> /dev/null | sed -n '1s/.*"note": "\([0-9]*\) TFLOP.*/\1/p')
echo "$(date -u +%F); floor of a step: its arithmetic at ${product:-0} TFLOP/s; peer / ours above 1: ours is faster, or smaller"
printf '%-38s %10s %10s %10s %7s  %s\n' what ours floor peer ratio note
for what in $rows; do
    case $what in
    operations) operations ;;
    step) for model in $models; do step "$model" full fp32; done ;;
    step-lean) for model in $models; do step "$model" lean bf16; done ;;
    *) echo "bench-gpu: no rows are called $what; there are operations, step, step-lean"; exit 2 ;;
    esac
done
exit $failed
