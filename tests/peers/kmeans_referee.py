"""kmeans_referee.py LIBRARY [VECTORS.npy]: compares moed_kmeans_fit with scikit-learn, and balanced fits with plain ones.

From the same starts both run Lloyd's iteration, so inertia must agree; from their own k-means++ starts the best of eight restarts may differ a
little. Needs numpy and scikit-learn. Exit code 1 when a ratio is outside its bound."""
import ctypes
import sys
import time

import numpy
from sklearn.cluster import KMeans

RANK = 6
CONTEXT_OPTIONS, KMEANS_OPTIONS = 10, 40
THREADS_OFFSET = 32  # in moed_context_options


class Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int32), ("device", ctypes.c_int32), ("rank", ctypes.c_int32),
                ("reserved", ctypes.c_int32), ("shape", ctypes.c_int64 * RANK), ("strides", ctypes.c_int64 * RANK)]


class Options(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("clusters", ctypes.c_int32), ("method", ctypes.c_int32),
                ("iterations", ctypes.c_int32), ("restarts", ctypes.c_int32), ("seed", ctypes.c_uint64), ("tolerance", ctypes.c_double),
                ("imbalance", ctypes.c_double), ("start", ctypes.c_int32), ("batch", ctypes.c_int32)]


class Info(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("clusters", ctypes.c_int64), ("width", ctypes.c_int64),
                ("iterations", ctypes.c_int64), ("inertia", ctypes.c_double), ("centroids", ctypes.POINTER(ctypes.c_float)),
                ("weights", ctypes.POINTER(ctypes.c_double)), ("counts", ctypes.POINTER(ctypes.c_int64))]


class Library:
    def __init__(self, path, threads=0):
        self.lib = ctypes.CDLL(path)
        self.lib.moed_last_error.restype = ctypes.c_char_p
        self.lib.moed_struct_size.restype = ctypes.c_size_t
        assert self.lib.moed_struct_size(KMEANS_OPTIONS) == ctypes.sizeof(Options), "the library's struct is another one"
        self.context = ctypes.c_void_p()
        options = (ctypes.c_char * 512)()
        self.lib.moed_struct_size.restype = ctypes.c_size_t
        size = self.lib.moed_struct_size(CONTEXT_OPTIONS)
        self.call("moed_options_init", CONTEXT_OPTIONS, options, ctypes.c_size_t(size))
        ctypes.c_int32.from_buffer(options, THREADS_OFFSET).value = threads
        self.call("moed_context_create", ctypes.byref(self.context), options)

    def call(self, name, *arguments):
        if getattr(self.lib, name)(*arguments) != 0:
            sys.exit(f"{name}: {self.lib.moed_last_error().decode()}")

    @staticmethod
    def tensor(x):
        rows, width = x.shape
        return Tensor(x.ctypes.data, 1, 0, 2, 0, (ctypes.c_int64 * RANK)(rows, width), (ctypes.c_int64 * RANK)(width, 1))

    def fit(self, x, clusters, starts=None, weights=None, **settings):
        """(inertia, weight of the heaviest cluster over the mean, seconds, labels)"""
        o, k, info = Options(), ctypes.c_void_p(), Info(struct_size=ctypes.sizeof(Info))
        self.call("moed_options_init", KMEANS_OPTIONS, ctypes.byref(o), ctypes.c_size_t(ctypes.sizeof(o)))
        o.clusters = clusters
        for name, value in settings.items():
            setattr(o, name, value)
        self.call("moed_kmeans_create", ctypes.byref(k), self.context, ctypes.byref(o))
        labels = numpy.empty(len(x), numpy.int32)
        began = time.perf_counter()
        self.call("moed_kmeans_fit", k, ctypes.byref(self.tensor(x)), None if weights is None else ctypes.c_void_p(weights.ctypes.data),
                  None if starts is None else ctypes.byref(self.tensor(starts)), None)
        seconds = time.perf_counter() - began
        self.call("moed_kmeans_labels", k, ctypes.c_void_p(labels.ctypes.data), ctypes.c_int64(len(x)))
        self.call("moed_kmeans_get_info", k, ctypes.byref(info))
        shares = numpy.array(info.weights[:clusters])
        result = info.inertia, shares.max() / shares.mean(), seconds, labels
        self.lib.moed_kmeans_destroy(k)
        return result


def data_sets(arguments):
    if arguments:
        yield arguments[0], numpy.ascontiguousarray(numpy.load(arguments[0]), numpy.float32), 8
        return
    random = numpy.random.default_rng(1)
    for name, rows, width, clusters, spread in (("clouds", 4000, 16, 8, 0.4), ("overlapping", 6000, 64, 8, 2.0), ("noise", 3000, 32, 16, 1e6)):
        centres = random.normal(size=(clusters, width))
        x = centres[random.integers(clusters, size=rows)] + spread * random.normal(size=(rows, width))
        yield name, (x / numpy.abs(x).max()).astype(numpy.float32), clusters


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    library, good = Library(sys.argv[1]), True
    for name, x, clusters in data_sets(sys.argv[2:]):
        starts = x[numpy.random.default_rng(2).choice(len(x), clusters, replace=False)].copy()
        began = time.perf_counter()
        peer = KMeans(clusters, init=starts, n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(x)
        peer_seconds = time.perf_counter() - began
        same = library.fit(x, clusters, starts=starts, iterations=300, tolerance=0.0)
        agree = (same[3] == peer.labels_).mean()
        best_peer = KMeans(clusters, n_init=8, random_state=0).fit(x).inertia_
        best = library.fit(x, clusters, restarts=8)
        weights = numpy.random.default_rng(3).lognormal(6, 1, len(x)).astype(numpy.float32)
        plain, balanced = (library.fit(x, clusters, weights=weights, method=method) for method in (0, 1))
        ratio, best_ratio = same[0] / peer.inertia_, best[0] / best_peer
        print(f"{name}: same starts: inertia ratio {ratio:.6f}, labels agree {agree:.4f}, {same[2]:.2f} s against {peer_seconds:.2f} s; "
              f"own starts, best of 8: {best_ratio:.4f}; balanced against plain: inertia {balanced[0] / plain[0]:.4f}, "
              f"heaviest {balanced[1]:.4f} against {plain[1]:.4f} of the mean, time {balanced[2] / plain[2]:.2f}")
        good = good and abs(ratio - 1) < 1e-3 and best_ratio < 1.01
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
