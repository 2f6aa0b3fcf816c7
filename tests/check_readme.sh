#!/bin/sh
# The C program in README.md compiles as it stands, and does what the text around it says; C in docs/ compiles.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
awk '/^```c$/ {on = 1; next} /^```$/ {on = 0} on' "$root/README.md" >"$work/example.c"
. "$root/tests/outside/flags.sh"
# shellcheck disable=SC2046
"${CC:-cc}" $(sanitizer "$OUT/libmoedisco.so") -std=c99 -pedantic -Wall -Wextra -Werror -I"$root/include" -o "$work/example" "$work/example.c" -L"$OUT" -lmoedisco -Wl,-rpath,"$OUT"
"$OUT/moedisco" init "$work/base" --vocabulary 64 --hidden 16 --layers 2 --heads 2 --experts 4 --expert-width 24 --seed 5
"$work/example" "$work/base" "$work/out"
for k in 0 1 2 3; do
    "$OUT/moedisco" info "$work/out/$k" >/dev/null # a valid model of its family
done
cmp "$work/base/model.safetensors" "$work/out/whole/model.safetensors"
if "$work/example" "$work/none" "$work/out2" 2>"$work/error"; then
    echo "a missing base was accepted"
    exit 1
fi
grep -q "$work/none" "$work/error"
for page in "$root"/docs/*.md; do
    echo '#include <moedisco.h>' >"$work/page.c"
    awk '/^```c$/ {on = 1; next} /^```$/ {on = 0} on' "$page" >>"$work/page.c"
    "${CC:-cc}" -std=c99 -pedantic -Wall -Wextra -Werror -Wno-unused-function -fsyntax-only -I"$root/include" "$work/page.c"
done
