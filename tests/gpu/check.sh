#!/bin/sh
# gpu/check.sh [sanitize [TOOL...]] - every operation of the CUDA plug-in against the reference, then the library on it against
# the CPU, then a device that is lost. OUT is the build's directory, or a folder made by `make gpu-pack`; MOED_TEST_DEVICE the
# device (cuda:0). sanitize: the operations and a few steps of training under the tools of compute-sanitizer (memcheck racecheck;
# synccheck initcheck) instead. Without a GPU: whether its absence is told in a sentence, and 2.
set -u
plugin=${OUT:?}/moedisco-backends/libmoedisco-cuda.so
device=${MOED_TEST_DEVICE:-cuda:0}
failed=0
[ -d "$OUT/lib" ] && export LD_LIBRARY_PATH="$OUT/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export MOED_BACKEND_PATH="$OUT/moedisco-backends" # the tests are linked statically: nothing lies beside a library of theirs
[ -f "$plugin" ] || { echo "check-gpu: the plug-in is not built: no CUDA toolkit was found, or CUDA=0 was given"; exit 2; }

# WHAT TEXT COMMAND: the command fails, and says TEXT
refused() {
    what=$1 text=$2
    shift 2
    said=$("$@" 2>&1) && { echo "FAILED: $what: it was not refused"; failed=1; return; }
    case $said in
    *"$text"*) echo "ok: $what: $said" ;;
    *) echo "FAILED: $what: expected \"$text\", it said: $said"; failed=1 ;;
    esac
}
# Whatever the machine has: a library that does not load.
# shellcheck disable=SC2317 # called by refused
without_cublas() {
    broken=$(mktemp -d) || return 1
    for major in 12 13; do : > "$broken/libcublasLt.so.$major"; done
    LD_LIBRARY_PATH="$broken${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$@"
    code=$?
    rm -rf "$broken"
    return "$code"
}

line=$("$OUT/moedisco" info | grep -m 1 "^device $device ")
case $line in
'' | *'not usable'*)
    case $line in
    *'not usable: '*[a-z]*) echo "ok: $line" ;;
    *) echo "FAILED: info does not say why there is no $device"; failed=1 ;;
    esac
    refused "a device that cannot be used" "cannot be used: " "$OUT/moedisco" info --device "$device"
    "$OUT/moedisco" info | grep -q '^here: device cpu' || { echo "FAILED: without a GPU the CPU is not taken"; failed=1; }
    echo "check-gpu: nothing was checked, for there is no GPU to check on: ${line:-no device $device}"
    exit $((failed ? 1 : 2)) ;;
esac
echo "$line"

# Errors of calls are not counted: NVIDIA's libraries try what a chip can do and go on, and ours check each of their own. Errors within
# kernels count, whosever they are.
under() { # TOOL PROGRAM ARGUMENTS
    tool=$1
    shift
    echo "== $tool: $(basename "$1") $(printf '%s' "$*" | sed 's/^[^ ]*//; s/--plugin [^ ]* //')"
    compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 9 --print-limit 20 "$@" > "$log" 2>&1 || {
        failed=1
        grep -m 60 '=========' "$log"
    }
    tail -n 1 "$log"
}
if [ "${1:-}" = sanitize ]; then
    command -v compute-sanitizer > /dev/null || { echo "check-gpu: there is no compute-sanitizer on PATH"; exit 2; }
    shift
    [ $# -gt 0 ] || set -- memcheck racecheck
    log=$(mktemp) || exit 1
    trap 'rm -f "$log"' EXIT
    for tool in "$@"; do
        for kernels in f32 bf16; do
            under "$tool" "$OUT/tests/test_conformance" --plugin "$plugin" --kernels $kernels --device "${device#*:}"
        done
        under "$tool" "$OUT/tests/gpu/test_gpu" 'a_checkpoint_goes*'
    done
    exit $failed
fi

refused "a library that does not load" "does not load" without_cublas "$OUT/moedisco" info --device "$device"
for kernels in f32 bf16; do
    "$OUT/tests/test_conformance" --plugin "$plugin" --kernels $kernels --device "${device#*:}" || failed=1
done
"$OUT/tests/gpu/test_gpu" || failed=1
"$OUT/tests/gpu/test_lost" || failed=1
exit $failed
