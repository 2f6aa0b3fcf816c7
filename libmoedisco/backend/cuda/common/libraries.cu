/* cuda/common/libraries.cu - loads NVIDIA's libraries. */
#include "libraries.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

/* Loads `file` and finds its functions in the order of their names. On failure a sentence, and nothing is written. */
static bool load(const char *file, const char *const *names, int count, void **functions, char (&sentence)[320])
{
    void *found[32], *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    bool complete = library != nullptr;
    for (int i = 0; complete && i < count; i++) complete = (found[i] = dlsym(library, names[i])) != nullptr;
    if (complete) {
        for (int i = 0; i < count; i++) functions[i] = found[i];
        return true;
    }
    const char *why = dlerror();
    snprintf(sentence, sizeof sentence, "%s does not load (%.200s): install it, or name its folder in LD_LIBRARY_PATH", file,
             why ? why : "no reason given");
    return false;
}

#define NAME(name) #name,
#define LOAD(file, LIST, table, sentence)                                                                              \
    ([&] {                                                                                                             \
        static const char *const names[] = {LIST(NAME)};                                                               \
        enum { COUNT = sizeof names / sizeof *names };                                                                 \
        static_assert(COUNT <= 32 && sizeof table == COUNT * sizeof(void *), "the table is its functions, in order");  \
        return load(file, names, COUNT, reinterpret_cast<void **>(&table), sentence);                                  \
    }())

moedi_cuda_cublas moedi_cublas;

moed_status moedi_cuda_libraries(const moed_host_api *host)
{
    static bool loaded;
    char sentence[320];
    pthread_mutex_lock(&lock);
    if (!loaded) loaded = LOAD("libcublasLt.so." TEXT(CUBLAS_VER_MAJOR), MOEDI_CUDA_CUBLAS, moedi_cublas, sentence);
    const bool ready = loaded;
    pthread_mutex_unlock(&lock);
    return ready ? MOED_OK : host->fail(host->self, MOED_E_BACKEND, sentence);
}

#ifdef MOEDI_CUDNN
moedi_cuda_cudnn moedi_cudnn;

bool moedi_cuda_load_cudnn(const moed_host_api *host)
{
    static bool tried, loaded;
    char sentence[320] = "";
    pthread_mutex_lock(&lock);
    if (!tried) loaded = LOAD("libcudnn.so." TEXT(CUDNN_MAJOR), MOEDI_CUDA_CUDNN, moedi_cudnn, sentence);
    tried = true;
    const bool ready = loaded;
    pthread_mutex_unlock(&lock);
    if (*sentence && host->log) host->log(host->self, MOED_LOG_INFO, sentence);
    return ready;
}
#endif
