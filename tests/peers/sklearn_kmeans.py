"""sklearn_kmeans.py LIBRARY [COUNT WIDTH CLUSTERS [ITERATIONS [DATA]]]: moed_kmeans_fit beside scikit-learn's KMeans, as JSON lines.

Same vectors, same starts, two threads each, in turns; the best of the turns of each counts. DATA: clouds (overlapping, the default) or
uniform. Processor seconds stand beside the clock's: on a machine that does other work too, they are the steadier figure. The last two
figures are of a balanced fit beside the plain one. ITERATIONS 0: until the centroids rest (tolerance 1e-4, 300 at most)."""
import json
import os
import sys
import time

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "2"

import numpy
from sklearn.cluster import KMeans

from kmeans_referee import Library

TURNS = 2


def vectors(count, width, data):
    random = numpy.random.default_rng(1)
    x = random.random((count, width), numpy.float32)
    if data == "clouds":
        x = random.standard_normal((count, width), numpy.float32)
        x += 0.5 * random.standard_normal((100, width), numpy.float32)[random.integers(100, size=count)]
    return x


def timed(work):
    """(result, seconds by the clock, seconds of processors)"""
    began, spent = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - began, time.process_time() - spent


def best(turns):
    return min(t[1] for t in turns), min(t[2] for t in turns)


def compare(library, count, width, clusters, iterations, data):
    x = vectors(count, width, data)
    starts = x[numpy.random.default_rng(2).choice(count, clusters, replace=False)].copy()
    most, tolerance = (iterations, 0.0) if iterations else (300, 1e-4)
    ours, peers = [], []
    for _ in range(TURNS):
        ours.append(timed(lambda: library.fit(x, clusters, starts=starts, iterations=most, tolerance=tolerance)))
        peers.append(timed(lambda: KMeans(clusters, init=starts, n_init=1, max_iter=most, tol=tolerance, algorithm="lloyd").fit(x)))
    (wall, spent), (peer_wall, peer_spent) = best(ours), best(peers)
    line = {"count": count, "width": width, "clusters": clusters, "iterations": peers[0][0].n_iter_, "data": data,
            "inertia_ratio": round(ours[0][0][0] / peers[0][0].inertia_, 6), "seconds": round(wall, 3), "peer_seconds": round(peer_wall, 3),
            "ratio": round(wall / peer_wall, 3), "processor": round(spent, 3), "peer_processor": round(peer_spent, 3),
            "processor_ratio": round(spent / peer_spent, 3)}
    if not iterations:
        weights = numpy.random.default_rng(3).lognormal(6, 1, count).astype(numpy.float32)
        fits = {0: [], 1: []} # plain, balanced
        for method in TURNS * (0, 1):
            fits[method].append(timed(lambda: library.fit(x, clusters, starts=starts, weights=weights, method=method)))
        (plain, plain_spent), (balanced, balanced_spent) = best(fits[0]), best(fits[1])
        line["balanced_time"], line["balanced_processor"] = round(balanced / plain, 2), round(balanced_spent / plain_spent, 2)
        line["heaviest"] = round(fits[1][0][0][1], 4)
    print(json.dumps(line), flush=True)


def main():
    if len(sys.argv) not in (2, 5, 6, 7):
        sys.exit(__doc__)
    library = Library(sys.argv[1], threads=2)
    if len(sys.argv) > 2:
        compare(library, *map(int, sys.argv[2:5]), int(sys.argv[5]) if len(sys.argv) > 5 else 10, sys.argv[6] if len(sys.argv) > 6 else "clouds")
        return
    for count, width in ((100000, 384), (1000000, 64)):
        for clusters in (4, 16, 64, 256):
            compare(library, count, width, clusters, 10, "clouds")


if __name__ == "__main__":
    main()
