#!/usr/bin/env python3
"""A referee for LLaMA-MoE v1, which is remote code to Transformers: the model in PyTorch, written from the paper (arXiv 2406.16554) and
from the names and defaults of github.com/pjlab-sys4nlp/llama-moe, and its fixtures, as transformers_fixture.py makes those of other families.
exchange.py trains parts with it: it is loaded and saved as a model of Transformers is.

    python tests/peers/llama_moe.py

The neurons of LLaMA's feed-forward lie in equal parts, one an expert. The gate's top logits go through a softmax of their own, and the experts'
outputs are weighted with that times score_scale_factor. While it trains, the original adds noise to the logits; this one does not.
The original's gate of two layers has as many hidden units as experts; a part has fewer experts and all units: gate_hidden_size.
"""
import json
import os
import shutil
import sys
from types import SimpleNamespace

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, os.path.dirname(__file__))
import transformers_fixture as fixture


class Norm(nn.Module):
    def __init__(self, width, epsilon):
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)


def turn(x, factor):
    """Rotary positions of x (rows, heads, length, width), base 10000, stretched by factor."""
    length, width = x.shape[-2:]
    angles = torch.outer(torch.arange(length) / factor, 10000.0 ** (-torch.arange(0, width, 2) / width))
    cosine, sine = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads = c.num_attention_heads, c.num_key_value_heads
        self.width, self.factor = c.hidden_size // self.heads, (c.rope_scaling or {"factor": 1.0})["factor"]
        self.q_proj = nn.Linear(c.hidden_size, self.heads * self.width, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, self.kv_heads * self.width, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, self.kv_heads * self.width, bias=False)
        self.o_proj = nn.Linear(self.heads * self.width, c.hidden_size, bias=False)

    def forward(self, x):
        rows, length, _ = x.shape
        q, k, v = (p(x).view(rows, length, -1, self.width).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = turn(q, self.factor), turn(k, self.factor)
        k, v = (y.repeat_interleave(self.heads // self.kv_heads, dim=1) for y in (k, v))
        scores = q @ k.transpose(2, 3) / self.width**0.5 + torch.full((length, length), float("-inf")).triu(1)
        return self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, length, -1))


class Gate(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.selects = c.num_selects
        if c.gate_network == "linear":
            self.gate_network = nn.Linear(c.hidden_size, c.num_experts, bias=False)
        else:
            units = getattr(c, "gate_hidden_size", c.num_experts)
            self.gate_network = nn.Sequential(nn.Linear(c.hidden_size, units, bias=False), nn.Tanh(),
                                              nn.Linear(units, c.num_experts, bias=False))
        if c.gate_add_noise:
            self.weight_noise = nn.Linear(c.hidden_size, c.num_experts, bias=False)

    def forward(self, x):
        logits = self.gate_network(x)
        top, chosen = logits.topk(self.selects, dim=-1)
        return logits, top.softmax(-1), chosen


class Experts(nn.Module):
    def __init__(self, c):
        super().__init__()
        width = c.intermediate_size // c.num_experts
        for name, shape in (("weight_gate", (width, c.hidden_size)), ("weight_up", (width, c.hidden_size)),
                            ("weight_down", (c.hidden_size, width))):
            setattr(self, name, nn.ParameterList([nn.Parameter(torch.randn(shape) * 0.2) for _ in range(c.num_experts)]))

    def forward(self, x, expert):
        return F.linear(F.silu(F.linear(x, self.weight_gate[expert])) * F.linear(x, self.weight_up[expert]), self.weight_down[expert])


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.self_attn, self.scale = Attention(c), c.score_scale_factor
        self.mlp = nn.ModuleDict({"gate": Gate(c), "calculator": nn.ModuleDict({"experts": Experts(c)})})
        self.input_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.count = c.num_experts

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        h = self.post_attention_layernorm(x)
        logits, weights, chosen = self.mlp["gate"](h)
        for expert in range(self.count):
            weight = (weights * (chosen == expert)).sum(-1, keepdim=True) * self.scale
            x = x + weight * self.mlp["calculator"]["experts"](h, expert)
        return x, logits.reshape(-1, self.count)


class LlamaMoE(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict({"embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
                                    "layers": nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)]),
                                    "norm": Norm(config.hidden_size, config.rms_norm_eps)})
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @classmethod
    def from_pretrained(cls, folder):
        """In float32."""
        with open(os.path.join(folder, "config.json")) as f:
            model = cls(SimpleNamespace(**json.load(f)))
        tensors = {}
        for file in os.listdir(folder):
            if file.endswith(".safetensors"):
                tensors.update(load_file(os.path.join(folder, file)))
        model.load_state_dict({n: t.float() for n, t in tensors.items() if "rotary_emb" not in n})
        return model

    def save_pretrained(self, folder, max_shard_size="5GB"):
        c = self.config
        os.makedirs(folder, exist_ok=True)
        c.torch_dtype = str(self.lm_head.weight.dtype).removeprefix("torch.")
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump({n: v for n, v in vars(c).items() if not n.startswith("_")}, f, indent=2)
        tensors = {n: p.detach().clone() for n, p in self.named_parameters()}
        width = c.hidden_size // c.num_attention_heads
        for l in range(c.num_hidden_layers):  # which the original's rotary module saves
            tensors[f"model.layers.{l}.self_attn.rotary_emb.inv_freq"] = 10000.0 ** (-torch.arange(0, width, 2) / width)
        save_torch_state_dict(tensors, folder, max_shard_size=max_shard_size)

    def forward(self, input_ids, labels=None, output_router_logits=False):
        x, router_logits = self.model["embed_tokens"](input_ids.long()), []
        for layer in self.model["layers"]:
            x, logits = layer(x)
            router_logits.append(logits)
        logits, loss = self.lm_head(self.model["norm"](x)), None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(logits=logits, router_logits=router_logits, loss=loss)


TINY = dict(model_type="llama_moe", architectures=["LlamaMoEForCausalLM"], vocab_size=29, hidden_size=8, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, intermediate_size=24, num_experts=4, num_selects=2, size_experts=None,
            max_position_embeddings=64, rms_norm_eps=1e-5, hidden_act="silu", rope_scaling=None, tie_word_embeddings=False,
            gate_type="TopKBalancedNoisyGate", gate_network="mlp", gate_use_softmax=True, gate_add_noise=True,
            calculator_type="UniversalCalculator", multiply_gate_scores=True, score_scale_factor=4.0, add_weight_norm=False,
            pretraining_tp=1, torch_dtype="float32")
CONFIGURATIONS = {
    # as published but for the sizes; experts' sizes are listed
    "llama_moe-a": dict(size_experts=[[6, 6, 6, 6], [6, 6, 6, 6]]),
    # a gate of one layer, grouped queries, no matrix for noise, three choices, positions stretched evenly
    "llama_moe-b": dict(gate_network="linear", num_key_value_heads=2, gate_add_noise=False, num_selects=3, score_scale_factor=1.0, num_hidden_layers=1,
                        rope_scaling={"type": "linear", "factor": 2.0}),
    # a one-expert submodel: its weight is the scale
    "llama_moe-c": dict(num_experts=1, num_selects=1, intermediate_size=6, score_scale_factor=2.0),
}


def make(folder, more, seed):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = LlamaMoE(SimpleNamespace(**{**TINY, **more}))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    fixture.randomise(model, generator)
    tokens, labels = fixture.batches(model.config.vocab_size, generator)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    model.config.num_experts_per_tok = model.config.num_selects  # as others call it
    return fixture.record(folder, model, "llama_moe", tokens, labels, seed)


def main():
    folder = os.path.join(os.path.dirname(__file__), "..", "fixtures", "transformers")
    for name, more in CONFIGURATIONS.items():
        if not any(make(os.path.join(folder, name), more, seed) for seed in range(1, 50)):
            sys.exit(f"{name}: no seed keeps the experts {fixture.SAFE_MARGIN} apart")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
