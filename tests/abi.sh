#!/bin/sh
# What the libraries export is what the headers declare and the version script lists, and nothing else; the structs are as the
# headers say, and as they were. OUT comes from the Makefile.
cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d "${TMPDIR:-/tmp}/moedisco-abi-XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
shared=$OUT/libmoedisco.so static=$OUT/libmoedisco.a failed=0
same() { # what, file, what, file
    if ! diff "$2" "$4" >"$work/diff"; then
        echo "< $1, > $3:"; cat "$work/diff"; failed=1
    fi
}
cat include/moedisco.h include/moedisco/*.h | tr '\n' ' ' | grep -o 'MOED_API [^;{]*;' | grep -o 'moed_[a-z0-9_]*(' | tr -d '(' | sort >"$work/declared"
sed -n 's/^ *\([a-z][a-z0-9_]*\);$/\1/p' libmoedisco/moedisco.map | sort >"$work/listed"
nm -D --defined-only "$shared" | awk '$2 != "A" { print $3 }' | sed 's/@.*//' | sort >"$work/shared"
nm -g --defined-only "$static" | awk 'NF == 3 { print $3 }' | sort >"$work/static"
[ -s "$work/declared" ] || { echo 'the headers declare nothing'; failed=1; }
same 'declared in include/' "$work/declared" 'listed in moedisco.map' "$work/listed"
same 'listed in moedisco.map' "$work/listed" 'exported by libmoedisco.so' "$work/shared"
same 'listed in moedisco.map' "$work/listed" 'global in libmoedisco.a' "$work/static"
if grep -v '^moed_' "$work/shared" "$work/static"; then echo 'symbols without the prefix'; failed=1; fi
soname=$(readelf -d "$shared" | sed -n 's/.*SONAME.*\[\(.*\)\].*/\1/p')
[ "$soname" = libmoedisco.so.0 ] || { echo "SONAME is $soname, not libmoedisco.so.0"; failed=1; }

# What a library in somebody's process does not call: it would end the process, print, change what belongs to the whole process, or
# read what it was not told of. In their place: statuses, callbacks, secure_getenv of three names, *_r forms, O_CLOEXEC.
forbidden='
    exit _exit _Exit quick_exit abort __assert_fail raise kill atexit __cxa_atexit on_exit at_quick_exit system popen execv execve execvp posix_spawn fork vfork
    printf vprintf puts putchar putc fputs fputc fwrite perror psignal warn warnx err errx error syslog __printf_chk __fprintf_chk fprintf vfprintf stdout stderr
    signal sigaction sigprocmask sigaltstack setitimer timer_create alarm sleep usleep
    setlocale textdomain bindtextdomain srand rand random srandom drand48 lrand48 strtok strerror localtime gmtime ctime asctime readdir_r tmpnam mktemp
    getenv setenv unsetenv putenv clearenv environ __environ chdir fchdir chroot umask setuid setgid setrlimit prlimit nice setpriority sched_setaffinity
    pthread_setaffinity_np pthread_atfork feenableexcept fedisableexcept mallopt malloc_trim dlclose dup dup2 pipe socket connect longjmp mlockall'
for name in $forbidden; do echo "$name"; done | sort -u >"$work/forbidden"
nm -D --undefined-only "$shared" | awk '{ print $NF }' | sed 's/@.*//' | sort -u >"$work/wanted"
case $(nm -D --undefined-only "$shared") in *__asan_*|*__ubsan_*|*__tsan_*) : >"$work/forbidden" ;; esac # the tools' own calls
if comm -12 "$work/forbidden" "$work/wanted" | grep .; then echo 'a library in somebody'\''s process does not call these'; failed=1; fi
# Files are opened with O_CLOEXEC, streams with "e".
if grep -n '[^_a-z]open(' libmoedisco/*/*.c | grep -v 'O_CLOEXEC' | grep 'O_'; then echo 'opened without O_CLOEXEC'; failed=1; fi
if grep -n 'fopen(' libmoedisco/*/*.c libmoedisco/backend/cpu/*.c | grep -v '"[rwa]*e"'; then echo 'opened without "e"'; failed=1; fi

# Fields lie where they lay, one after the other without a gap: structs grow at their end alone.
sh tests/abi_fields.sh >"$work/fields" || failed=1
same 'recorded in tests/abi_fields.txt' tests/abi_fields.txt 'in include/' "$work/fields"
awk '$2 != at { print "padding that is not written out before " (NF == 3 ? $1 : "the end of " $1); bad = 1 }
    { at = NF == 3 ? $2 + $3 : 0 }
    END { exit bad }' "$work/fields" || failed=1

# struct sizes: what the loaded library says, what the header says, multiples of 8
. tests/outside/flags.sh
{
    cat <<'END'
#include <stdio.h>
#include "moedisco.h"
static int wrong;
static void one(const char *name, size_t header, size_t library)
{
    if (header == library && header % 8 == 0) return;
    printf("%s: %zu bytes in the header, %zu in the library\n", name, header, library);
    wrong = 1;
}
int main(void)
{
END
    grep -o 'MOED_STRUCT_[A-Z_]* =' include/moedisco/base.h | while read -r id rest; do
        type=moed_$(printf %s "${id#MOED_STRUCT_}" | tr '[:upper:]' '[:lower:]')
        printf '    one("%s", sizeof(%s), moed_struct_size(%s));\n' "$type" "$type" "$id"
    done
    printf '    return wrong;\n}\n'
} >"$work/sizes.c"
${CC:-cc} -std=c99 $(sanitizer "$shared") -Iinclude -o "$work/sizes" "$work/sizes.c" "$shared" -Wl,-rpath,"$OUT" && "$work/sizes" || failed=1
exit $failed
