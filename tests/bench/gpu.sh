#!/bin/sh
# gpu.sh OUT [ROW...] - what a GPU is measured by, one table: ours, the floor, the peer, and the ratio peer / ours (above 1: ours is faster or
# smaller). OUT: the build's directory, or a folder made by `make gpu-pack`. Rows: operations (products, attention, grouped linear, loss
# head, k-means), step (training, with both policies), all where none is named. PEERS: a Python with PyTorch for CUDA and Transformers;
# without it the peers' column stays empty. CUDA_VISIBLE_DEVICES names one card, or none; STEPS (10), ROUNDS (3) of the operations, MODELS.
# Memory is the card's, by nvidia-smi ten times a second, less what was in use before the program began: the same for both sides, with
# the driver's context and what allocators hold back. The allocator's own peak stands in the note.
set -u
LC_ALL=C
export LC_ALL
out=$(cd "${1:?the directory of the build}" && pwd) || exit 1
shift
rows=${*:-operations step}
benches=$out/tests/bench
scripts=$(cd "$(dirname "$0")/../peers" && pwd)
device=cuda:0 # the only one that the peers take
peers=${PEERS:-}
steps=${STEPS:-10}
models=${MODELS:-qwen-dense qwen-4 qwen-64}
[ -d "$out/lib" ] && LD_LIBRARY_PATH=$out/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
if [ -n "$peers" ]; then # the same cuBLAS and cuDNN on both sides
    theirs=$("$peers" -c 'import glob, site; print(":".join(d for s in site.getsitepackages() for d in glob.glob(s + "/nvidia/*/lib")))' 2> /dev/null)
    [ -n "$theirs" ] && LD_LIBRARY_PATH=$theirs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}"
export MOED_BACKEND_PATH="$out/moedisco-backends" # the programs are linked statically: nothing lies beside a library of theirs
line=$("$out/moedisco" info | grep -m 1 "^device $device ")
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
    nvidia-smi -i "${CUDA_VISIBLE_DEVICES:-0}" --query-gpu=memory.used --format=csv,noheader,nounits -lms 100 > "$work/used" 2> /dev/null &
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

# MODEL: both policies. Speed is beside the peer's fastest, with its state in bf16; memory beside the peer's state of the same kind.
step() {
    for policy in full lean; do measured $policy "$benches/bench_step" 0 "$steps" "$device" $policy "$1"; done
    for state in bf16 fp32; do
        : > "$work/$state"
        [ -z "$peers" ] || measured $state "$peers" "$scripts/torch_cuda_step.py" --model "$1" --state $state --steps "$steps"
        theirs=$(cat "$work/$state")
        [ -z "$(value "$theirs" error)" ] || echo "peer, $1, $state: $(value "$theirs" error)"
    done
    step_rows "$1" full fp32
    step_rows "$1" lean bf16
}
measured() { # NAME COMMAND: its line, and the memory, to $work/NAME
    name=$1
    shift
    watched "$@"
    sed "s/^{/{\"gib\": $memory, /" "$work/lines" > "$work/$name"
}
step_rows() { # MODEL POLICY STATE-OF-THE-PEER
    ours=$(cat "$work/$2") fastest=$(cat "$work/bf16") alike=$(cat "$work/$3")
    [ "$(value "$ours" policy)" = "$2" ] || echo "step, $1: bench_step does not tell the policy $2"
    rate=$(value "$ours" median) other=$(value "$fastest" median)
    row "step, $1, $2" "$(seconds "$rate")" "$(floor "$ours")" "$(seconds "$other")" \
        "${rate:-0} tokens/s, $(value "$ours" gflops) GFLOP/s; peer ${other:-0} tokens/s, compiled, state bf16"
    row "memory, $1, $2" "$(value "$ours" gib)" 0 "$(value "$alike" gib)" \
        "estimate $(value "$ours" device_gib); peer $3: $(value "$alike" median) tokens/s, tensors $(value "$alike" allocated_gib), held $(value "$alike" reserved_gib)" GiB
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
    step) for model in $models; do step "$model"; done ;;
    *) echo "bench-gpu: no rows are called $what; there are operations, step"; exit 2 ;;
    esac
done
cat << 'END'
tried, and did not pay (docs/benchmarks.md): cuDNN's grouped product, a fifth of CUTLASS' rate; tiles of 128 x 256 and 256 x 128, or the better of two
by shape (1%); packed sequences in place of a bias for documents (0.088, 0.434 ms against 0.179, 0.406); k-means' products in pieces that stay in the L2.
END
exit $failed
