#!/bin/sh
# gpu/pack.sh OUT DIRECTORY BENCH... - what check-gpu and bench-gpu run, for a machine with a GPU and without this tree: programs,
# the plug-in, scripts, and the shared libraries that such a machine may lack. There: sh DIRECTORY/check.sh, sh DIRECTORY/bench.sh.
set -eu
out=${1:?the directory of the build}
to=${2:?the folder to be made: make gpu-pack DIR=FOLDER}
shift 2
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$to/lib" "$to/moedisco-backends" "$to/tests/gpu" "$to/tests/bench/plugins" "$to/tests/peers"
cp "$out/libmoedisco.so" "$out/moedisco" "$to/"
ln -sf libmoedisco.so "$to/libmoedisco.so.0"
cp "$out/moedisco-backends/libmoedisco-cuda.so" "$to/moedisco-backends/"
cp "$out/tests/test_conformance" "$to/tests/"
cp "$out/tests/gpu/test_gpu" "$out/tests/gpu/test_lost" "$here/check.sh" "$to/tests/gpu/"
cp "$out/tests/bench/plugins/libmoedisco-timed.so" "$to/tests/bench/plugins/"
cp "$@" "$to/tests/bench/"
cp "$here/../bench/gpu.sh" "$to/tests/bench/"
cp "$here"/../peers/torch_cuda_*.py "$to/tests/peers/"
for program in libmoedisco.so tests/test_conformance; do ldd "$to/$program"; done | awk '/libjansson|liblbfgs|libcmocka/ { print $3 }' | sort -u |
    while read -r library; do cp -L "$library" "$to/lib/"; done
find "$to" -type f -perm -u+x ! -name '*.sh' ! -name '*.py' -exec strip --strip-debug {} + # half the size
cat > "$to/check.sh" <<'END'
#!/bin/sh
OUT=$(cd "$(dirname "$0")" && pwd)
export OUT
exec sh "$OUT/tests/gpu/check.sh" "$@"
END
cat > "$to/bench.sh" <<'END'
#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
exec sh "$here/tests/bench/gpu.sh" "$here" "$@"
END
du -sh "$to"
