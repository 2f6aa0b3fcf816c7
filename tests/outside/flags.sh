# The flag that a program needs beside a library that was built with a sanitizer. $1: libmoedisco.so
sanitizer() {
    case $(nm -D --undefined-only "$1") in
    *__asan_*) echo -fsanitize=address,undefined ;;
    *__tsan_*) echo -fsanitize=thread ;;
    *__ubsan_*) echo -fsanitize=undefined ;;
    esac
}
