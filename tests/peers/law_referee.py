#!/usr/bin/env python3
"""law_referee.py COMMAND [SETS]: `moedisco law fit` beside SciPy's least squares of the same Huber objective, on runs made here.

SciPy (trust-region reflective, from the law behind the runs, with saturation fitted) has the best start there is: a fit from a grid
of starts should come to the same objective."""
import json
import subprocess
import sys
import tempfile

import numpy as np
from scipy.optimize import least_squares

TRUE = np.array([np.log(35.91), -0.1889, -0.2285, 0.0098, np.log(35.98), -0.1775, 0.5529, -0.0259, np.log(2.0732),
                 np.log(290.4521 / 2.0732 - 1), np.log(1.3637)])


def log_loss(p, n, e, d):
    start = np.exp(p[8])
    most = start * (1 + np.exp(p[9]))
    y = -np.log(1 / (e - 1 + 1 / (1 / start - 1 / most)) + 1 / most)
    of_n = p[0] + p[2] * y + (p[1] + p[3] * y) * np.log(n)
    of_d = p[4] + p[6] * y + (p[5] + p[7] * y) * np.log(d)
    return np.logaddexp(np.logaddexp(of_n, of_d), p[10])


PULL = 0.05 / 300  # of e_start and e_max to the published ones, as in law_fit.c


def objective(residual, weight, p, delta=0.01):
    a = np.abs(residual)
    return PULL * np.sum((p[8:10] - TRUE[8:10]) ** 2) +  np.sum(weight * np.where(a <= delta, 0.5 * a * a, delta * (a - 0.5 * delta))) / np.sum(weight) / delta**2


def main():
    command, sets = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
    for s in range(sets):
        r = np.random.default_rng(s)
        n = 3e7 * 100 ** r.random(300)
        d = n * 2 * 100 ** r.random(300)
        e = 2.0 ** r.integers(0, 6, 300)
        target = log_loss(TRUE, n, e, d) + 0.005 * r.standard_normal(300)
        weight = np.exp(target.min() - target)
        with tempfile.NamedTemporaryFile("w", suffix=".csv") as f:
            np.savetxt(f, np.column_stack([n, e, d, np.exp(target)]), "%.17g", ",", header="N,E,D,L", comments="")
            f.flush()
            line = [command, "law", "fit", f.name, "--held-out", "0", "--json"]
            out = subprocess.run(line, check=True, capture_output=True, text=True).stdout
        k = json.loads(out.splitlines()[-1])["coefficients"]
        ours = np.array([np.log(k["a"]), k["alpha"], k["delta"], k["gamma"], np.log(k["b"]), k["beta"], k["omega"], k["zeta"],
                         np.log(k["e_start"]), np.log(k["e_max"] / k["e_start"] - 1), np.log(k["c"])])
        # Each residual has a Huber function of its own scale, so by a loss of our own; the two last, of the pull, are plain squares.
        scale = np.append(weight, [1e12, 1e12])
        pull = np.sqrt(2 * PULL * np.sum(weight))

        def rho(z):
            zw = z / scale  # z is the square of sqrt(weight) * residual / 0.01
            root = np.sqrt(zw)
            small = root <= 1
            value = np.where(small, zw, 2 * root - 1)
            first = np.where(small, 1.0, 1 / np.maximum(root, 1e-12))
            second = np.where(small, 0.0, -0.5 / np.maximum(root, 1e-12) ** 3)
            return np.array([scale * value, first, second / scale])

        def residuals(p):
            return np.append(np.sqrt(weight) * (log_loss(p, n, e, d) - target) / 0.01, pull * (p[8:10] - TRUE[8:10]))

        theirs = least_squares(residuals, TRUE, loss=rho, x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14, max_nfev=20000).x
        mine, his = (objective(log_loss(p, n, e, d) - target, weight, p) for p in (ours, theirs))
        print(json.dumps({"set": s, "ours": mine, "scipy": his, "ours_over_scipy": mine / his}))


main()
