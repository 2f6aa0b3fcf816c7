#!/bin/sh
# sources.sh: lines of C and CUDA have at most 130 columns; folders of the library include what docs/architecture.md lets them,
# by the order of its list; within a folder no concepts (x.h with x.c) include one another in a circle.
cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d "${TMPDIR:-/tmp}/moedisco-sources-XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
failed=0
find include libmoedisco examples tests -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' | xargs grep -nE '^.{131,}' &&
    { echo 'lines of more than 130 columns'; failed=1; }
sed -n 's/^| `libmoedisco\/\([a-z]*\)` .*/\1/p' docs/architecture.md > "$work/order"
[ "$(wc -l < "$work/order")" = "$(ls -d libmoedisco/*/ | wc -l)" ] || { echo 'docs/architecture.md lists other folders than there are'; failed=1; }
# file, what it includes
find libmoedisco -type f | xargs grep -H '^ *# *include "' | sed 's/:.*include "\([^"]*\)".*/ \1/' |
    grep -v -e ' moedisco/' -e ' moedisco\.h' -e ' cutlass/' > "$work/includes"
awk 'FILENAME == ARGV[1] { rank[$1] = FNR; next }
    { split($1, own, "/"); split($2, to, "/") }
    to[1] in rank && rank[to[1]] > rank[own[2]] { print $1 " includes " $2 ", of a folder below its own"; bad = 1 }
    END { exit bad }' "$work/order" "$work/includes" || failed=1
# state.h is what the files of the transformer share
awk '$2 !~ /\// {
        folder = $1; sub(/[^\/]*$/, "", folder); own = $1; to = folder $2
        sub(/\.[a-z]*$/, "", own); sub(/\.[a-z]*$/, "", to)
        sub(/model\/state$/, "model/transformer", own); sub(/model\/state$/, "model/transformer", to)
        if (own != to) print own, to
    }' "$work/includes" | tsort > /dev/null 2> "$work/circles" || { echo 'in a circle:'; cat "$work/circles"; failed=1; }
exit $failed
