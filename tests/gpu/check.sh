#!/bin/sh
# gpu/check.sh: every operation of the CUDA plug-in against the reference, then the library on it against the CPU. OUT is the build's
# directory; MOED_TEST_DEVICE the device (cuda:0). SANITIZER=compute-sanitizer puts the operations under it.
set -u
plugin=${OUT:?}/moedisco-backends/libmoedisco-cuda.so
device=${MOED_TEST_DEVICE:-cuda:0}
[ -f "$plugin" ] || { echo "check-gpu: the plug-in is not built: no CUDA toolkit was found, or CUDA=0 was given"; exit 2; }
line=$("$OUT/moedisco" info | grep "^device $device ")
case $line in
'' | *'not usable'*) echo "check-gpu: nothing was checked, for there is no GPU to check on: ${line:-no device $device}"; exit 2 ;;
esac
echo "$line"
failed=0
for kernels in f32 bf16; do
    ${SANITIZER:-} "$OUT/tests/test_conformance" --plugin "$plugin" --kernels $kernels --device "${device#*:}" || failed=1
done
"$OUT/tests/gpu/test_gpu" || failed=1
exit $failed
