/* base.h - version, status codes, errors, options, plain structs and the cancel token.
 *
 * Rules that hold for every call of the library:
 *  - a call returns moed_status: MOED_OK or a negative code; the sentence is in moed_last_error();
 *  - what a call makes comes first (`**out`) and is set only on success;
 *  - destroy(NULL) does nothing, destroy never fails and never touches the last error;
 *  - a child handle keeps what it was made from alive: destroy in any order;
 *  - strings are UTF-8, sizes are bytes unless said otherwise, shapes are row-major. */
#ifndef MOEDISCO_BASE_H
#define MOEDISCO_BASE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define MOED_API __attribute__((visibility("default")))
#else
#define MOED_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- version ---- */

#define MOED_VERSION_MAJOR 0
#define MOED_VERSION_MINOR 1
#define MOED_VERSION_PATCH 0
/* major * 1000000 + minor * 1000 + patch */
#define MOED_VERSION 1000u

/* Version of the library that is loaded, encoded as MOED_VERSION. Threads: any. Since: 0.1. */
MOED_API uint32_t moed_version(void);

/* One line: version, compiler, kernel sets compiled in. Static storage. Threads: any. Since: 0.1. */
MOED_API const char *moed_build_info(void);

/* ---- status ---- */

typedef int32_t moed_status;

/* X(name, value, sentence). Spaced by tens per class; values are never reused. */
#define MOED_STATUS_LIST(X)                                                          \
    X(OK, 0, "done")                                                                 \
    X(E_ARGUMENT, -10, "an argument is wrong")                                       \
    X(E_RANGE, -11, "a value is outside its range")                                  \
    X(E_STRUCT, -12, "a struct has a size or content this library does not know")    \
    X(E_STATE, -13, "the handle is not in a state that allows this call")            \
    X(E_MISMATCH, -14, "two things that were given do not belong together")          \
    X(E_FORKED, -15, "the handle was made before fork() by another process")         \
    X(E_MEMORY, -20, "out of memory")                                                \
    X(E_LIMIT, -21, "does not fit in the memory limit")                              \
    X(E_BACKEND, -30, "no backend can do this")                                      \
    X(E_UNSUPPORTED, -31, "not supported")                                           \
    X(E_DEVICE, -40, "the device reported a fault")                                  \
    X(E_FORMAT, -50, "a file or text is damaged or of another format")               \
    X(E_CHECKSUM, -51, "a file's checksum does not match")                           \
    X(E_IO, -60, "reading or writing did not work")                                  \
    X(E_NOT_FOUND, -61, "not found")                                                 \
    X(E_SPACE, -62, "no space left")                                                 \
    X(E_EXISTS, -63, "exists already")                                               \
    X(E_CANCELLED, -70, "cancelled")                                                 \
    X(E_CALLBACK, -71, "a callback asked to stop")                                   \
    X(E_NUMERIC, -80, "a number is NaN or infinite")                                 \
    X(E_INTERNAL, -90, "a fault in the library: please report it")

enum {
#define MOED_STATUS_ENUM(name, value, text) MOED_##name = (value),
    MOED_STATUS_LIST(MOED_STATUS_ENUM)
#undef MOED_STATUS_ENUM
    MOED_STATUS_LAST = -1000 /* below every code */
};

/* "MOED_E_FORMAT" for -50; "MOED_E_UNKNOWN" for a number that is no code. Static. Threads: any. Since: 0.1. */
MOED_API const char *moed_status_name(moed_status status);
/* The code's general sentence. Static. Threads: any. Since: 0.1. */
MOED_API const char *moed_status_text(moed_status status);

/* Text of this thread's last failed call: one line that says what and which value; "" when the last
 * call on this thread succeeded. Borrowed until the thread's next call. Threads: any. Since: 0.1. */
MOED_API const char *moed_last_error(void);

/* The last error in parts. Strings are borrowed until the thread's next call, "" when not known. */
typedef struct moed_error_info {
    uint32_t struct_size;
    uint32_t flags;
    int32_t status;
    int32_t retryable;     /* 1: the same call may succeed later (memory, space, a fault of I/O, cancelled); 0: not before its
                            * arguments or files change, as where a path may not be written or leads nowhere */
    int64_t offset;        /* byte in the file, or -1 */
    int64_t callback_code; /* what the callback returned, for MOED_E_CALLBACK; else 0 */
    const char *message;
    const char *path;      /* the file */
    const char *parameter; /* the parameter, field or tensor */
} moed_error_info;

/* Fills out (out->struct_size set by the caller). Does not clear the error. Threads: any. Since: 0.1. */
MOED_API moed_status moed_last_error_get(moed_error_info *out);

/* ---- option structs ----
 *
 * Every options struct begins with struct_size and flags. moed_options_init fills in the real
 * defaults; nothing is reinterpreted later, so 0 means 0. A NULL options pointer means defaults.
 * A field appended in a later release means "as before" when 0, and is 0 for an older caller, whose
 * struct ends before it; a larger struct from a newer caller is accepted when its unknown tail is
 * zero. MOED_E_STRUCT for any other size, and for a bit of `flags` that the library does not know. */

enum {
    MOED_STRUCT_ERROR_INFO = 1,
    MOED_STRUCT_TENSOR = 2,
    MOED_STRUCT_PARAM = 3,
    MOED_STRUCT_PIECE = 4,
    MOED_STRUCT_SHARD = 5,
    MOED_STRUCT_BATCH = 6,
    MOED_STRUCT_FIELD = 7,
    MOED_STRUCT_CONTEXT_OPTIONS = 10,
    MOED_STRUCT_CONTEXT_INFO = 11,
    MOED_STRUCT_DEVICE_INFO = 12,
    MOED_STRUCT_MODEL_OPTIONS = 20,
    MOED_STRUCT_LAYOUT_INFO = 21,
    MOED_STRUCT_FINDING = 22,
    MOED_STRUCT_CORPUS_OPTIONS = 30,
    MOED_STRUCT_CORPUS_INFO = 31,
    MOED_STRUCT_DOCUMENTS = 32,
    MOED_STRUCT_CORPUS_REPORT = 33,
    MOED_STRUCT_KMEANS_OPTIONS = 40,
    MOED_STRUCT_KMEANS_INFO = 41,
    MOED_STRUCT_PARTITION_INFO = 42,
    MOED_STRUCT_EMBED_OPTIONS = 43,
    MOED_STRUCT_VECTORS = 44,
    MOED_STRUCT_SPLIT_OPTIONS = 50,
    MOED_STRUCT_INTEGRATION_OPTIONS = 60,
    MOED_STRUCT_INTEGRATION_INFO = 61,
    MOED_STRUCT_UPCYCLE_OPTIONS = 65,
    MOED_STRUCT_EXPANSION_OPTIONS = 66,
    MOED_STRUCT_TRAIN_OPTIONS = 70,
    MOED_STRUCT_ESTIMATE = 71,
    MOED_STRUCT_TRAINER_INFO = 72,
    MOED_STRUCT_REPORT = 73,
    MOED_STRUCT_PHASE = 74,
    MOED_STRUCT_COST = 75,
    MOED_STRUCT_LAW_OPTIONS = 80,
    MOED_STRUCT_LAW_INFO = 81,
    MOED_STRUCT_RUN_POINT = 82,
    MOED_STRUCT_FIT_OPTIONS = 83,
    MOED_STRUCT_COEFFICIENT = 84,
    MOED_STRUCT_LAW_TERMS = 85,
    MOED_STRUCT_STAGE = 90,
    MOED_STRUCT_GROWTH_OPTIONS = 91,
    MOED_STRUCT_GROWTH_INFO = 92,
    MOED_STRUCT_GROWTH_POINT = 93,
    MOED_STRUCT_STEP_TIME = 94
};

/* sizeof of a public struct in the loaded library, 0 for an unknown id: lets a binding check its
 * own layout at load time. Threads: any. Since: 0.1. */
MOED_API size_t moed_struct_size(int32_t id);

/* Fills an options struct (any id ending in _OPTIONS) with its defaults and struct_size = size.
 * size is the caller's sizeof. MOED_E_ARGUMENT for an id without defaults or a size below 8.
 * Threads: any. Since: 0.1. */
MOED_API moed_status moed_options_init(int32_t id, void *out, size_t size);

enum { /* moed_field.type */
    MOED_FIELD_I32 = 1,
    MOED_FIELD_I64 = 2,
    MOED_FIELD_U64 = 3,
    MOED_FIELD_F64 = 4,
    MOED_FIELD_TEXT = 5,    /* const char *, NULL allowed */
    MOED_FIELD_CHOICE = 6,  /* int32_t that indexes `choices`, "a|b|c" */
    MOED_FIELD_SWITCH = 7,  /* int32_t, 0 or 1 */
    MOED_FIELD_POINTER = 8  /* callback or user pointer: not for flags */
};

/* What one field of an options struct is: drives flags, files and bindings. */
typedef struct moed_field {
    uint32_t struct_size;
    uint32_t flags;
    const char *name;
    const char *choices;  /* for MOED_FIELD_CHOICE, else "" */
    const char *sentence; /* what it does, with its unit */
    int32_t type;
    uint32_t offset;      /* bytes from the start of the struct */
    double initial;       /* the default, 0 for text and pointers */
    double minimum;
    double maximum;
} moed_field;

/* Field `index` of options struct `id`. MOED_E_RANGE past the last. Strings are static.
 * Threads: any. Since: 0.1. */
MOED_API moed_status moed_options_field(int32_t id, size_t index, moed_field *out);

/* ---- data types ---- */

typedef int32_t moed_dtype;
enum {
    MOED_DTYPE_NONE = 0,
    MOED_DTYPE_F32 = 1,
    MOED_DTYPE_F16 = 2,
    MOED_DTYPE_BF16 = 3,
    MOED_DTYPE_F64 = 4,
    MOED_DTYPE_I32 = 5,
    MOED_DTYPE_I64 = 6,
    MOED_DTYPE_U8 = 7,
    MOED_DTYPE_I8 = 8,
    MOED_DTYPE_U16 = 9,
    MOED_DTYPE_I16 = 10,
    MOED_DTYPE_U32 = 11,
    MOED_DTYPE_U64 = 12,
    MOED_DTYPE_BOOL = 13,
    MOED_DTYPE_F8_E4M3 = 14,
    MOED_DTYPE_F8_E5M2 = 15,
    MOED_DTYPE_F8_E8M0 = 16,
    MOED_DTYPE_F6_E2M3 = 17,
    MOED_DTYPE_F6_E3M2 = 18,
    MOED_DTYPE_F4 = 19,
    MOED_DTYPE_C64 = 20
};

/* Bits per element, 0 for an unknown type. Threads: any. Since: 0.1. */
MOED_API int32_t moed_dtype_bits(moed_dtype dtype);
/* safetensors' name of the type ("F32", "BF16"), "" for an unknown one. Static. Threads: any. Since: 0.1. */
MOED_API const char *moed_dtype_name(moed_dtype dtype);

/* ---- plain structs ---- */

#define MOED_RANK_MAX 6

enum { /* moed_tensor.device */
    MOED_MEMORY_HOST = 0,
    MOED_MEMORY_DEVICE = 1 /* of the context's device, where that has memory of its own */
};

/* A view of an array. Ownership: never transferred by this struct. */
typedef struct moed_tensor {
    void *data;
    int32_t dtype;
    int32_t device;                 /* MOED_MEMORY_HOST or MOED_MEMORY_DEVICE */
    int32_t rank;                   /* 0..MOED_RANK_MAX */
    int32_t reserved;               /* 0 */
    int64_t shape[MOED_RANK_MAX];
    int64_t strides[MOED_RANK_MAX]; /* in elements; contiguous row-major unless said otherwise */
} moed_tensor;

/* What a parameter is to the surgeries. */
enum {
    MOED_ROLE_SHARED = 0,      /* backbone: embedding, attention, norms, head, shared expert */
    MOED_ROLE_EXPERT = 1,      /* weights of routed experts */
    MOED_ROLE_ROUTER = 2,      /* router weight: one row per expert */
    MOED_ROLE_ROUTER_BIAS = 3, /* one number per expert */
    MOED_ROLE_OPAQUE = 4,      /* copied, never averaged (buffers, integer tables) */
    MOED_ROLE_COUNT = 5
};

enum { /* moed_param.flags */
    MOED_PARAM_EXPERT_OUTPUT = 1, /* the expert's output is linear in this tensor (down projection) */
    MOED_PARAM_NORM = 2,          /* drawn as ones */
    MOED_PARAM_BIAS = 4,          /* drawn as zeros */
    MOED_PARAM_EMBEDDING = 8,     /* token embedding or output head: (vocabulary, width) */
    MOED_PARAM_FIXED = 16         /* no gradient trains it: a selection bias, which loads move */
};

/* One parameter of a layout. An expert parameter is either one expert's own tensor (expert >= 0,
 * expert_axis -1) or a stack of all experts (expert -1, expert_axis >= 0). Router rows and biases
 * are stacks with expert_axis 0. */
typedef struct moed_param {
    const char *name;
    int32_t role;
    int32_t layer;       /* -1: belongs to no layer */
    int32_t expert;      /* -1: not one expert's */
    int32_t expert_axis; /* -1: not a stack */
    int32_t dtype;
    int32_t rank;
    uint32_t flags;
    int32_t reserved;    /* 0 */
    int64_t shape[MOED_RANK_MAX];
} moed_param;

/* How a stretch of one destination tensor is made. The pieces of a tensor tile it along `axis`;
 * every stretch has one COPY or DRAW, and any number of DELTAs after it:
 *   COPY   dst[at .. at+count) = scale * source[from .. from+count)
 *   DELTA  dst[at .. at+count) += scale * (source[from ..] - reference[from ..])
 *   DRAW   dst[at .. at+count) = scale * normal(seed, index of the element in the whole tensor)
 *   NOISE  dst[at .. at+count) += scale * normal(seed, the same): after the others, like a DELTA; in host memory alone
 * Sums are taken in double over all pieces of an element, in the order of the pieces, and rounded
 * once; a sum of zero leaves the COPY's bits alone. Numbers that are equal differ by zero, infinite
 * ones too. A scale of 0 makes zeros (COPY, DRAW) or adds nothing (DELTA), whatever the source
 * holds. Sources are numbered: 0 the base, 1 + k submodel k. */
enum { MOED_PIECE_COPY = 1, MOED_PIECE_DELTA = 2, MOED_PIECE_DRAW = 3, MOED_PIECE_NOISE = 4 };

typedef struct moed_piece {
    int32_t op;
    int32_t axis;            /* of destination and sources; 0 for whole tensors */
    int32_t source;          /* 0 base, 1 + k submodel k */
    int32_t reference;       /* DELTA: the source it is measured from (0) */
    int64_t source_param;    /* index in the source's layout */
    int64_t reference_param; /* DELTA: index in the reference's layout */
    int64_t from;            /* first index along axis in the source */
    int64_t reference_from;  /* DELTA: first index along axis in the reference */
    int64_t at;              /* first index along axis in the destination */
    int64_t count;           /* indices along axis */
    double scale;
    uint64_t seed;           /* DRAW, NOISE */
} moed_piece;

/* The part of a destination tensor that is at hand: [start, start + count) along axis. */
typedef struct moed_shard {
    int32_t axis;
    int32_t reserved;
    int64_t start;
    int64_t count;
    int64_t whole;    /* indices of the whole tensor along axis */
} moed_shard;

/* Token rows. tokens, labels, weights, documents: (rows, length), row-major, host memory. */
typedef struct moed_batch {
    const int32_t *tokens;
    const int32_t *labels;    /* nullable: logits only; -1 = no label here */
    const float *weights;     /* nullable: 1 for every label */
    const int32_t *documents; /* nullable: attention sees only positions of the same number */
    int64_t rows;
    int64_t length;
} moed_batch;

/* ---- cancel ---- */

typedef struct moed_cancel moed_cancel;

/* A token for long calls: they return MOED_E_CANCELLED soon after the request.
 * Ownership: the caller's; must outlive the calls it is passed to. Threads: any. Since: 0.1. */
MOED_API moed_status moed_cancel_create(moed_cancel **out);
MOED_API void moed_cancel_destroy(moed_cancel *cancel);
/* One atomic store: legal in a signal handler and from any thread. NULL does nothing. Since: 0.1. */
MOED_API void moed_cancel_request(moed_cancel *cancel);

#ifdef __cplusplus
}
#endif
#endif
