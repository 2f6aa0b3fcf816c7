#!/usr/bin/env python3
"""Checkpoints in and out: our split, 20 AdamW steps in Transformers, our integrate, Transformers again.

    python tests/peers/exchange.py BUILD [NAME...]

BUILD is a build's directory (build/current). Needs torch, transformers and safetensors, CPU only; a few minutes. For each
configuration of transformers_fixture.py and llama_moe.py with several experts (or those whose name begins with a NAME), and each
way of saving below:

    save_pretrained -> moedisco split -> from_pretrained, 20 AdamW steps, save_pretrained in that way -> moedisco integrate

and then it checks: the base's logits from what we read, and the result's, are those of Transformers (2e-4); what nobody trained has
the base's bits, and each expert those of its part; shared numbers are the base's and the mean of what the parts moved (float32
rounding); tokenizer and generation files went along. Then dense models, upcycled. Prints a line each; ends with 1 when anything is
wrong.
"""
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen3Config
from transformers.utils import logging

import llama_moe
from transformers_fixture import CONFIGURATIONS, ROWS, LENGTH, qwen3, randomise

STEPS = 20
# experts in every layer of a family with a dense sibling
CONFIGURATIONS["qwen3_moe-d"] = qwen3(head_dim=4, norm_topk_prob=True, attention_bias=True)
for name, more in llama_moe.CONFIGURATIONS.items():  # remote code to Transformers
    CONFIGURATIONS[name] = llama_moe.LlamaMoE, SimpleNamespace(**{**llama_moe.TINY, **more})
SIZES = dict(vocab_size=29, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=12,
             max_position_embeddings=64, initializer_range=0.2, bos_token_id=None, eos_token_id=None, pad_token_id=None)
DENSE = {
    "mistral": MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=None),
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True,
                         rope_parameters=dict(rope_type="llama3", rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                              original_max_position_embeddings=16)),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=4, head_dim=6, attention_bias=True),
}
GATES = (".gate.weight", "correction_bias", ".gate_network.weight", ".gate_network.2.", ".weight_noise.")  # a row an expert
FROZEN = ("embed_tokens", "layers.0.input_layernorm")  # of every part
COMPANIONS = {"tokenizer.json": "{}", "tokenizer_config.json": "{}", "merges.txt": "a b", "notes.txt": "stays"}
WAYS = {  # how the parts' trainer and the base's owner save
    "plain": dict(base={}, part={}),
    "shards": dict(base=dict(max_shard_size="6KB"), part=dict(max_shard_size="5KB"), ours=("--shard-bytes", 6000)),
    "bf16": dict(base={}, part={}, dtype=torch.bfloat16),
    "bf16, trained in f32": dict(base={}, part={}, dtype=torch.bfloat16, part_dtype=torch.float32),
    "dense": dict(base={}, part={}, split=("--dense",)),
    "as in memory": dict(base=dict(save_original_format=False), part=dict(save_original_format=False)),
}


# ---- our logits, through the library ----

class Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int32), ("device", ctypes.c_int32), ("rank", ctypes.c_int32),
                ("reserved", ctypes.c_int32), ("shape", ctypes.c_int64 * 6), ("strides", ctypes.c_int64 * 6)]


class Batch(ctypes.Structure):
    _fields_ = [("tokens", ctypes.c_void_p), ("labels", ctypes.c_void_p), ("weights", ctypes.c_void_p), ("documents", ctypes.c_void_p),
                ("rows", ctypes.c_int64), ("length", ctypes.c_int64)]


class Library:
    def __init__(self, path):
        self.lib = ctypes.CDLL(path)
        self.lib.moed_last_error.restype = ctypes.c_char_p
        self.context = ctypes.c_void_p()
        self.call("moed_context_create", ctypes.byref(self.context), None)

    def call(self, name, *arguments):
        if getattr(self.lib, name)(*arguments):
            raise RuntimeError(f"{name}: {self.lib.moed_last_error().decode()}")

    def logits(self, folder, tokens):
        with open(os.path.join(folder, "config.json")) as file:
            vocabulary = json.load(file)["vocab_size"]
        model = ctypes.c_void_p()
        self.call("moed_model_open", ctypes.byref(model), self.context, folder.encode(), None)
        tokens = tokens.to(torch.int32).contiguous()
        out = torch.zeros(*tokens.shape, vocabulary)
        batch = Batch(tokens.data_ptr(), None, None, None, *tokens.shape)
        tensor = Tensor(out.data_ptr(), 1, 0, 3, 0, (*out.shape, 0, 0, 0), (*out.stride(), 0, 0, 0))
        try:
            self.call("moed_model_logits", model, ctypes.byref(batch), ctypes.byref(tensor), None)
        finally:
            self.lib.moed_model_destroy(model)
        return out


# ---- Transformers ----

def load(folder):
    with open(os.path.join(folder, "config.json")) as file:
        if json.load(file)["model_type"] == "llama_moe":
            return llama_moe.LlamaMoE.from_pretrained(folder).eval()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                 experts_implementation="eager")
    return model.eval()


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens.long()).logits


def train(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        p.requires_grad_(not any(f in name for f in FROZEN))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    for _ in range(STEPS):
        tokens = torch.randint(0, model.config.vocab_size, (ROWS, LENGTH), generator=generator)
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    return model.eval()


def save(model, folder, dtype=None, **options):
    try:
        (model.to(dtype) if dtype else model).save_pretrained(folder, **options)
    except TypeError as fault:
        raise SystemExit(f"this Transformers does not save with {options}: {fault}")


def unstacked(name, tensor):
    """A stack of experts, gate above up, as the tensors of each."""
    head, mark, kind = name.partition(".experts.")
    if kind == "down_proj":
        return {f"{head}{mark}{e}.down_proj.weight": w for e, w in enumerate(tensor)}
    if kind == "gate_up_proj":
        halves = [(e, w.chunk(2)) for e, w in enumerate(tensor)]
        return {f"{head}{mark}{e}.{which}_proj.weight": part for e, both in halves for which, part in zip(("gate", "up"), both)}
    return {name: tensor}


def numbers(folder):
    """{name: tensor} of a directory that we wrote: one tensor per expert and matrix."""
    out = {}
    for file in sorted(os.listdir(folder)):
        if file.endswith(".safetensors"):
            for name, tensor in load_file(os.path.join(folder, file)).items():
                out.update(unstacked(name, tensor))
    return out


# ---- one configuration ----

def experts_of(config):
    for field in ("num_experts", "num_local_experts", "n_routed_experts"):
        if getattr(config, field, None):
            return getattr(config, field)
    return 0


class Fault(Exception):
    pass


def check(right, text):
    if not right:
        raise Fault(text)


def agree(library, folder, tokens, what):
    worst = float((library.logits(folder, tokens) - logits(load(folder), tokens)).abs().max())
    check(worst <= 2e-4, f"{what}: our logits and those of Transformers differ by {worst:.1e}")
    return worst


def moedisco(build, *arguments):
    done = subprocess.run([os.path.join(build, "moedisco"), *map(str, arguments)], capture_output=True, text=True)
    check(done.returncode == 0, f"moedisco {arguments[0]}: {done.stderr.strip()}")


def has_dense(config):
    """Whether the family has a dense sibling, and the model no layer without experts."""
    layers = range(config.num_hidden_layers)
    only = getattr(config, "mlp_only_layers", None) or []
    step = getattr(config, "decoder_sparse_step", 1)
    return config.model_type in ("mixtral", "qwen3_moe") and not any(l in only or (l + 1) % step for l in layers)


def expert_of_part(name, lists, dense):
    """(name in the part) of the base's expert tensor, or None: (part, name)."""
    head, mark, tail = name.partition(".experts.")
    if tail.startswith("weight_"):  # the expert's number comes last
        rest, dot, number = tail.partition(".")
    else:
        number, dot, rest = tail.partition(".")
    if not mark or not number.isdigit():
        return None
    layer = int(head.split("layers.")[1].split(".")[0])
    for part, layers in enumerate(lists):
        if int(number) in layers[layer] and dense:
            matrix = {"w1.weight": "gate_proj.weight", "w2.weight": "down_proj.weight", "w3.weight": "up_proj.weight"}.get(rest, rest)
            return part, f"model.layers.{layer}.mlp.{matrix}"
        if int(number) in layers[layer]:
            mine = str(layers[layer].index(int(number)))
            return part, f"{head}{mark}" + (f"{rest}{dot}{mine}" if tail.startswith("weight_") else f"{mine}{dot}{rest}")
    return -1, name


def compare(base, parts, whole, lists, dense):
    """Every number of the result is what integration promises."""
    check(set(base) == set(whole), f"other tensors: {sorted(set(base) ^ set(whole))[:3]}")
    untouched = 0
    for name, before in base.items():
        after = whole[name]
        check(after.dtype == before.dtype and after.shape == before.shape, f"{name}: another type or shape")
        where = expert_of_part(name, lists, dense)
        if where and where[0] >= 0:
            check(torch.equal(after, parts[where[0]][where[1]].to(before.dtype)), f"{name} is not part {where[0]}'s")
        elif where or any(f in name for f in GATES + FROZEN):
            check(torch.equal(after, before), f"{name} was not trained, and has other bits")
            untouched += 1
        else:
            mean = before.double() + sum(p[name].double() - before.double() for p in parts) / len(parts)
            near = dict(rtol=1e-6, atol=1e-7) if before.dtype == torch.float32 else dict(rtol=2**-8, atol=1e-7)
            check(torch.allclose(after.double(), mean, **near), f"{name} is not the base and what the parts moved")
            check(before.dtype != torch.float32 or not torch.equal(after, before), f"{name} did not move")
    return untouched


def exchange(build, library, kind, config, way, folder):
    path = lambda *names: os.path.join(folder, *map(str, names))
    torch.manual_seed(1)
    config._attn_implementation = "eager"
    model = kind(config).float()
    randomise(model, torch.Generator().manual_seed(1))
    save(model, path("base"), way.get("dtype"), **way["base"])
    for name, text in {"generation_config.json": "{}", **COMPANIONS}.items():
        if not os.path.exists(path("base", name)):
            with open(path("base", name), "w") as file:
                file.write(text)
    tokens = torch.randint(0, config.vocab_size, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))
    worst = agree(library, path("base"), tokens, "base")
    count = experts_of(config)
    dense = "split" in way
    parts = count if count < 4 or dense else count // 2
    if parts < count and count % 2:  # two experts each, and one that stays the base's
        with open(path("experts.json"), "w") as file:
            json.dump({"experts": [[2 * k, 2 * k + 1] for k in range(parts)]}, file)
        which = ("--experts", path("experts.json"))
    else:
        which = ("--parts", parts)
    moedisco(build, "split", path("base"), path("sub"), *which, "--quiet", *way.get("ours", ()), *way.get("split", ()))
    lists = []
    for k in range(parts):
        worst = max(worst, agree(library, path("sub", k), tokens, f"part {k}"))
        with open(path("sub", k, "config.json")) as file:
            lists.append(json.load(file)["moedisco"]["experts"])
        save(train(load(path("sub", k)), k), path("trained", k), way.get("part_dtype", way.get("dtype")), **way["part"])
    moedisco(build, "integrate", path("base"), path("whole"), *(path("trained", k) for k in range(parts)), "--quiet",
             *way.get("ours", ()))
    worst = max(worst, agree(library, path("whole"), tokens, "the result"))
    # the base and the parts as we write them, for their names and not their numbers
    moedisco(build, "integrate", path("base"), path("again"), *(path("sub", k) for k in range(parts)), "--quiet")
    base = numbers(path("again"))
    rewritten = [rewrite(library, path("trained", k), path("rewritten", k)) for k in range(parts)]
    untouched = compare(base, rewritten, numbers(path("whole")), lists, dense)
    for made in ("whole", "sub/0"):
        for name in COMPANIONS:
            check(os.path.exists(path(made, name)) == (name != "notes.txt"), f"{made}: {name} is wrongly there or missing")
        check(os.path.exists(path(made, "generation_config.json")), f"{made}: there is no generation_config.json")
    return f"{parts} parts, logits within {worst:.1e}, {untouched} of {len(base)} tensors untouched"


def upcycle(build, library, config, folder):
    """A dense model of Transformers, read by us, made into one with experts, read by Transformers: the same logits three times."""
    path = lambda name: os.path.join(folder, name)
    torch.manual_seed(1)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).float().eval()
    randomise(model, torch.Generator().manual_seed(1))
    model.save_pretrained(path("dense"))
    tokens = torch.randint(0, config.vocab_size, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))
    worst = agree(library, path("dense"), tokens, "the dense model")
    moedisco(build, "upcycle", path("dense"), path("whole"), "--experts", 4, "--top-k", 2, "--quiet")
    worst = max(worst, agree(library, path("whole"), tokens, "the upcycled model"))
    difference = float((logits(model, tokens) - logits(load(path("whole")), tokens)).abs().max())
    check(difference <= 2e-4, f"clones compute something else: logits differ by {difference:.1e}")
    return f"logits within {max(worst, difference):.1e}"


def rewrite(library, source, out):
    """The tensors of a directory of any layout under the names that we write."""
    class Options(ctypes.Structure):
        _fields_ = [("struct_size", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("rest", ctypes.c_uint8 * 128)]
    options = Options(ctypes.sizeof(Options), 1)  # MOED_MODEL_STREAM: in its own dtypes
    model = ctypes.c_void_p()
    os.makedirs(os.path.dirname(out), exist_ok=True)
    library.call("moed_model_open", ctypes.byref(model), library.context, source.encode(), ctypes.byref(options))
    try:
        library.call("moed_model_save", model, out.encode(), None)
    finally:
        library.lib.moed_model_destroy(model)
    return numbers(out)


def main():
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    build, wanted = sys.argv[1], sys.argv[2:]
    library = Library(os.path.join(build, "libmoedisco.so"))
    failed = 0
    for name, (kind, config) in CONFIGURATIONS.items():
        if experts_of(config) < 2 or (wanted and not any(name.startswith(w) for w in wanted)):
            continue
        for way, how in WAYS.items():
            if "split" in how and not has_dense(config):
                continue
            if kind is llama_moe.LlamaMoE and "save_original_format" in how["base"]:  # which has one format
                continue
            folder = tempfile.mkdtemp(prefix="exchange-")
            try:
                print(f"{name:16} {way:20} {exchange(build, library, kind, config, how, folder)}", flush=True)
            except (Fault, RuntimeError) as fault:
                failed = 1
                print(f"{name:16} {way:20} WRONG: {fault}", flush=True)
            finally:
                shutil.rmtree(folder)
    for name, config in DENSE.items():
        if wanted and not any(name.startswith(w) for w in wanted):
            continue
        folder = tempfile.mkdtemp(prefix="exchange-")
        try:
            print(f"{name:16} {'upcycled':20} {upcycle(build, library, config, folder)}", flush=True)
        except (Fault, RuntimeError) as fault:
            failed = 1
            print(f"{name:16} {'upcycled':20} WRONG: {fault}", flush=True)
        finally:
            shutil.rmtree(folder)
    sys.exit(failed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    main()
