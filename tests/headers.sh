#!/bin/sh
# Each public header stands alone, in pedantic C99 and in C++11. CC and CXX come from the Makefile.
cd "$(dirname "$0")/.." || exit 1
failed=0
for header in include/moedisco.h include/moedisco/*.h include/moedisco/sys/*.h; do
    name=${header#include/}
    printf '#include <%s>\n#include <%s>\nint moedisco_header_test;\n' "$name" "$name" |
        ${CC:-cc} -std=c99 -pedantic -Wall -Wextra -Werror -Iinclude -fsyntax-only -xc - || { echo "$name: not clean C99"; failed=1; }
    printf '#include <%s>\n#include <%s>\nint moedisco_header_test;\n' "$name" "$name" |
        ${CXX:-c++} -std=c++11 -pedantic -Wall -Wextra -Werror -Iinclude -fsyntax-only -xc++ - || { echo "$name: not clean C++11"; failed=1; }
done
exit $failed
