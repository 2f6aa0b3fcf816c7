"""Operations at the sizes of a large GPU: tests/bench/bench_device beside the best of PyTorch, in turns, as rows of the bench table.

python torch_cuda_operations.py OURS DEVICE [--rounds N] [--pause SECONDS] [--small] [ROW...]
OURS: the program bench_device; ROW: product attention grouped loss kmeans (all). Each round runs both, the order changing, with pauses, so
that heat favours neither; the medians over the rounds count. A time is that of many calls between two waits. The peers: matmul,
scaled_dot_product_attention by cuDNN, grouped_mm, a linear cross-entropy in pieces and a whole one (both compiled; the better counts),
and Lloyd's iteration by TF32 products, argmin and index_add."""
import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCHES, BATCH_SECONDS = 7, 0.02
grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def timed(call):
    """Seconds of a call: the median of batches of calls, each between two waits."""
    def batch(calls):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        return (time.perf_counter() - began) / calls

    for _ in range(2): # compiled, tuned, allocated
        call()
    wait()
    calls = max(1, int(BATCH_SECONDS / batch(1)))
    return statistics.median(batch(calls) for _ in range(BATCHES))


def normal(*shape, scale=1.0, dtype=torch.bfloat16):
    return torch.randn(*shape, device=DEVICE, dtype=dtype) * scale


# ---- rows: name -> a call to be timed; names are bench_device's ----

def product(small):
    for m, n, k in ((512, 512, 512),) if small else ((8192, 8192, 8192), (16384, 5632, 2048)):
        a, b = normal(m, k), normal(n, k)
        yield f"product {m} x {n} x {k}", lambda: a @ b.t()


def attention(small):
    rows, length, heads, head = (1, 128, 4, 64) if small else (8, 1024, 16, 128)
    packed = normal(rows, length, 3, heads, head)
    q, k, v = (x.transpose(1, 2).detach().requires_grad_() for x in packed.unbind(2))
    backend = SDPBackend.CUDNN_ATTENTION if DEVICE == "cuda" else SDPBackend.MATH
    with sdpa_kernel(backend):
        yield "attention forward", lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        d_out = torch.randn_like(out)
        yield "attention backward", lambda: torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True)


def grouped(small):
    groups, rows, n, k = (4, 512, 64, 128) if small else (64, 131072, 1408, 2048)
    x, y, weight = normal(rows, k), normal(rows, n), normal(groups, n, k)
    ends = torch.arange(1, groups + 1, device=DEVICE, dtype=torch.int32) * (rows // groups)
    yield "grouped forward", lambda: grouped_mm(x, weight.transpose(-2, -1), offs=ends)
    yield "grouped d_x", lambda: grouped_mm(y, weight, offs=ends)
    yield "grouped d_w", lambda: grouped_mm(y.t(), x, offs=ends)


def softmax_gradient(logits, labels, scale):
    x = logits.float()
    lse = torch.logsumexp(x, 1)
    hit = torch.arange(x.shape[1], device=x.device)[None] == labels[:, None]
    losses = lse - torch.where(hit, x, 0.0).sum(1)
    return losses, ((torch.exp(x - lse[:, None]) - hit.float()) * scale).to(logits.dtype)


def loss(small):
    rows, width, vocabulary, piece = (512, 64, 1000, 128) if small else (16384, 2048, 151936, 2048)
    h, head = normal(rows, width).requires_grad_(), normal(vocabulary, width, scale=0.02).requires_grad_()
    labels = torch.randint(0, vocabulary, (rows,), device=DEVICE)
    factors = torch.compile(softmax_gradient)
    whole = torch.compile(lambda x, w: F.cross_entropy(F.linear(x, w).float(), labels))

    def in_pieces():
        d_h, d_head, losses = torch.empty_like(h), torch.zeros_like(head), []
        with torch.no_grad():
            for x, y, d_x in zip(h.split(piece), labels.split(piece), d_h.split(piece)):
                found, d_logits = factors(x @ head.t(), y, 1.0 / rows)
                losses.append(found)
                torch.mm(d_logits, head, out=d_x)
                d_head.addmm_(d_logits.t(), x)
        return losses, d_h, d_head

    yield "loss head", in_pieces
    yield "loss head", lambda: torch.autograd.grad(whole(h, head), (h, head))


def kmeans(small):
    torch.backends.cuda.matmul.allow_tf32 = True
    count, width, block = (4096, 64, 1024) if small else (1000000, 2048, 1 << 17)
    x = torch.rand(count, width, device=DEVICE) * 2 - 1
    for clusters in (16,) if small else (64, 1024):
        centroids = x[:clusters].clone()

        def iteration():
            labels = torch.empty(count, dtype=torch.long, device=DEVICE)
            norms = centroids.square().sum(1)
            for at in range(0, count, block):
                labels[at:at + block] = torch.addmm(norms, x[at:at + block], centroids.t(), alpha=-2).argmin(1)
            sums = torch.zeros_like(centroids).index_add_(0, labels, x)
            return sums / torch.bincount(labels, minlength=clusters).clamp(min=1)[:, None]

        yield f"k-means iteration, K {clusters}", iteration


ROWS = {"product": product, "attention": attention, "grouped": grouped, "loss": loss, "kmeans": kmeans}


def of_peer(rows, small):
    """{name: (seconds, error)}: the best of what has the same name"""
    found = {}
    for row in rows:
        calls = ROWS[row](small)
        while True:
            try:
                name, call = next(calls)
            except StopIteration:
                break
            except Exception as error:
                print(f"peer {row}: {error}"[:300], file=sys.stderr)
                break
            try:
                seconds = timed(call)
            except Exception as error:
                print(f"peer {name}: {error}"[:300], file=sys.stderr)
                continue
            found[name] = min(seconds, found.get(name, seconds))
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    return found


def of_ours(program, device, rows, small):
    done = subprocess.run([program, device, *(["small"] if small else []), *rows], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr.strip()[-300:], file=sys.stderr)
    return {line["what"]: line for line in map(json.loads, done.stdout.splitlines())}


def main():
    a = argparse.ArgumentParser()
    a.add_argument("ours")
    a.add_argument("device")
    a.add_argument("rows", nargs="*", default=list(ROWS))
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--pause", type=float, default=2)
    a.add_argument("--small", action="store_true")
    a = a.parse_args()
    ours, peers = [], []
    sides = [lambda: ours.append(of_ours(a.ours, a.device, a.rows, a.small)), lambda: peers.append(of_peer(a.rows, a.small))]
    for turn in range(a.rounds):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            side()
            time.sleep(a.pause)

    def middle(rounds, name, field=None):
        values = [r[name][field] if field else r[name] for r in rounds if name in r]
        return statistics.median(values) if values else 0

    for name in dict.fromkeys(n for r in ours + peers for n in r):
        notes = [r[name]["note"] for r in ours if name in r]
        print(json.dumps({"what": name, "ours": middle(ours, name, "ours"), "floor": middle(ours, name, "floor"), "peer": middle(peers, name),
                          "note": notes[0] if notes else ""}), flush=True)


if __name__ == "__main__":
    main()
