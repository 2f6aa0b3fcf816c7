/* cuda/common/libraries.cu - loads NVIDIA's libraries. */
#include "libraries.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

moedi_cuda_cublas moedi_cublas;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool loaded;

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define CUBLAS_FILE "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR)

static moed_status refuse(const moed_host_api *host, const char *what)
{
    char sentence[320];
    const char *why = dlerror();
    snprintf(sentence, sizeof sentence, "%s does not load (%.200s): install it, or name its folder in LD_LIBRARY_PATH", what, why ? why : "no reason given");
    return host->fail(host->self, MOED_E_BACKEND, sentence);
}

static moed_status load_cublas(const moed_host_api *host)
{
    void *library = dlopen(CUBLAS_FILE, RTLD_NOW | RTLD_LOCAL);
    if (!library) return refuse(host, CUBLAS_FILE);
    moedi_cuda_cublas found;
#define FIND(name)                                                              \
    *(void **)&found.name = dlsym(library, #name);                              \
    if (!found.name) return refuse(host, CUBLAS_FILE);
    MOEDI_CUDA_CUBLAS(FIND)
    moedi_cublas = found;
    return MOED_OK;
}

moed_status moedi_cuda_libraries(const moed_host_api *host)
{
    moed_status status = MOED_OK;
    pthread_mutex_lock(&lock);
    if (!loaded) {
        status = load_cublas(host);
        loaded = status == MOED_OK;
    }
    pthread_mutex_unlock(&lock);
    return status;
}
