"""The models of tests/bench/bench_step.c in PyTorch on the same CPU, eager and compiled: one JSON line each.
python torch_step.py [--threads N] [--steps N] [--how eager,compile]. Experts run one after another over their own tokens, as
Transformers' eager Mixtral does; attention is scaled_dot_product_attention; AdamW is the fused one; fp32 throughout."""
import argparse
import json
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

LAYERS, HIDDEN, HEADS, WIDTH, VOCABULARY, ROWS, LENGTH = 6, 384, 6, 1024, 8192, 16, 256


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x):
        return F.rms_norm(x, (HIDDEN,), self.weight, 1e-6)


class Experts(nn.Module):
    def __init__(self, experts, top_k):
        super().__init__()
        self.experts, self.top_k = experts, top_k
        self.gate = nn.Linear(HIDDEN, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, 2 * WIDTH, HIDDEN) * 0.02)
        self.down = nn.Parameter(torch.randn(experts, HIDDEN, WIDTH) * 0.02)

    def forward(self, x):
        h = x.reshape(-1, HIDDEN)
        if self.experts == 1:
            g, u = F.linear(h, self.up[0]).chunk(2, -1)
            return F.linear(F.silu(g) * u, self.down[0]).view_as(x), x.new_zeros(())
        p = self.gate(h).softmax(-1)
        w, ids = p.topk(self.top_k, -1)
        w = w / w.sum(-1, keepdim=True)
        out = torch.zeros_like(h)
        share = torch.zeros(self.experts)
        for e in range(self.experts):
            token, choice = (ids == e).nonzero(as_tuple=True)
            g, u = F.linear(h[token], self.up[e]).chunk(2, -1)
            out.index_add_(0, token, F.linear(F.silu(g) * u, self.down[e]) * w[token, choice, None])
            share[e] = len(token) / ids.numel()
        return out.view_as(x), self.experts * (share * p.mean(0)).sum()


class Block(nn.Module):
    def __init__(self, experts, top_k):
        super().__init__()
        self.n1, self.n2 = Norm(), Norm()
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)
        self.o = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.moe = Experts(experts, top_k)

    def forward(self, x, cosine, sine):
        b, t, _ = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, HEADS, HIDDEN // HEADS).permute(2, 0, 3, 1, 4)

        def turn(y):
            a, c = y.chunk(2, -1)
            return torch.cat([a * cosine - c * sine, c * cosine + a * sine], -1)

        y = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, HIDDEN))
        y, loss = self.moe(self.n2(x))
        return x + y, loss


class Model(nn.Module):
    def __init__(self, experts, top_k):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.blocks = nn.ModuleList(Block(experts, top_k) for _ in range(LAYERS))
        self.norm = Norm()
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
        half = HIDDEN // HEADS // 2
        angle = torch.outer(torch.arange(LENGTH), 1e4 ** (-torch.arange(half) / half))
        self.register_buffer("cosine", angle.cos())
        self.register_buffer("sine", angle.sin())

    def forward(self, tokens, labels):
        x, balance = self.embedding(tokens), 0
        for b in self.blocks:
            x, loss = b(x, self.cosine, self.sine)
            balance = balance + loss / LAYERS
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, VOCABULARY), labels.reshape(-1)) + 0.01 * balance


def bench(name, how, experts, top_k, steps):
    torch.manual_seed(0)
    model = Model(experts, top_k)
    step_model = torch.compile(model) if how == "compile" else model
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    seconds = []
    for i in range(steps + 2):
        x = torch.randint(0, VOCABULARY, (ROWS, LENGTH + 1))
        start = time.perf_counter()
        loss = step_model(x[:, :-1], x[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        if i >= 2:
            seconds.append(time.perf_counter() - start)
    seconds.sort()
    tokens = ROWS * LENGTH
    print(json.dumps({"bench": "step", "model": name, "peer": f"PyTorch {torch.__version__} {how}",
                      "tokens_per_second": round(tokens / seconds[0]), "median": round(tokens / seconds[len(seconds) // 2])}), flush=True)


if __name__ == "__main__":
    a = argparse.ArgumentParser()
    a.add_argument("--threads", type=int, default=0)
    a.add_argument("--steps", type=int, default=5)
    a.add_argument("--how", default="eager,compile")
    a = a.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    for how in a.how.split(","):
        bench("moe", how, 4, 2, a.steps)
        bench("dense", how, 1, 1, a.steps)
