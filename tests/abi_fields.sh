#!/bin/sh
# abi_fields.sh: every field of the public structs with its offset and size, and each struct's own size after them, from the
# headers alone. `sh tests/abi_fields.sh > tests/abi_fields.txt` once fields were appended: tests/abi.sh holds the headers to it.
cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d "${TMPDIR:-/tmp}/moedisco-fields-XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
{
    cat <<'END'
#include <stdio.h>
#include "moedisco.h"
#include "moedisco/sys/backend.h"
#define FIELD(s, f) printf("%s.%s %zu %zu\n", #s, #f, offsetof(s, f), sizeof(((s *)0)->f));
#define WHOLE(s) printf("%s %zu\n", #s, sizeof(s));
int main(void)
{
END
    printf '#include "moedisco.h"\n#include "moedisco/sys/backend.h"\n' | ${CC:-cc} -std=c99 -E -P -Iinclude - | tr '\n' ' ' |
        grep -o 'typedef struct moed_[a-z0-9_]* *{[^}]*}' | awk '{
            type = $3
            sub(/^[^{]*[{]/, ""); sub(/[}]$/, "")
            members = split($0, member, ";") - 1
            for (i = 1; i <= members; i++) {
                if (match(member[i], /\(\*[a-z0-9_]*\)\(/)) { # a function
                    print "FIELD(" type ", " substr(member[i], RSTART + 2, RLENGTH - 4) ")"
                    continue
                }
                gsub(/\[[^]]*\]/, "", member[i])
                names = split(member[i], name, ",")
                for (k = 1; k <= names; k++) {
                    sub(/.*[ *]/, "", name[k])
                    print "FIELD(" type ", " name[k] ")"
                }
            }
            print "WHOLE(" type ")"
        }'
    printf 'return 0;\n}\n'
} >"$work/fields.c"
${CC:-cc} -std=c99 -Iinclude -o "$work/fields" "$work/fields.c" && "$work/fields"
