"""The models of tests/bench/bench_step.c for a large GPU in PyTorch, through Transformers' Qwen2Moe: one JSON line each.

python torch_cuda_step.py [--model qwen-dense,qwen-4,qwen-64] [--how compile,eager] [--state bf16,fp32] [--steps N] [--tiny]
state bf16: parameters, gradients and AdamW's moments in bf16; fp32: all of them in fp32 under autocast to bf16. Experts by grouped_mm,
attention by scaled_dot_product_attention, AdamW fused, no clipping of gradients (ours clips). Peaks are the caching allocator's: what
tensors held, and what was held for them. --tiny: sizes that only try the script out, on a CPU too."""
import argparse
import gc
import json
import time

import torch
import transformers

ROWS, LENGTH, MICRO_BATCHES, WARM = 16, 1024, 2, 3
SHAPES = {"qwen-dense": (24, 1, 1), "qwen-4": (24, 4, 2), "qwen-64": (8, 64, 8)} # layers, experts, top-k
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def configuration(model, tiny):
    layers, experts, top_k = SHAPES[model]
    sizes = dict(hidden_size=2048, num_attention_heads=16, num_key_value_heads=16, intermediate_size=5632, moe_intermediate_size=1408,
                 shared_expert_intermediate_size=5632, vocab_size=151936)
    if tiny:
        layers = 2
        sizes = dict(hidden_size=64, num_attention_heads=2, num_key_value_heads=2, intermediate_size=128, moe_intermediate_size=32,
                     shared_expert_intermediate_size=128, vocab_size=512)
    config = transformers.Qwen2MoeConfig(num_hidden_layers=layers, num_experts=experts, num_experts_per_tok=top_k, norm_topk_prob=False,
                                         output_router_logits=experts > 1, router_aux_loss_coef=0.01, tie_word_embeddings=False,
                                         use_cache=False, max_position_embeddings=LENGTH, **sizes)
    config._attn_implementation = "sdpa"
    if experts > 1: # one expert sees every token: nothing is grouped
        config._experts_implementation = "grouped_mm"
    return config


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def measure(model, how, state, steps, tiny):
    rows, length = (4, 32) if tiny else (ROWS, LENGTH)
    config = configuration(model, tiny)
    with torch.device(DEVICE):
        network = transformers.Qwen2MoeForCausalLM(config).to(torch.bfloat16 if state == "bf16" else torch.float32)
    network.train()
    forward = torch.compile(network) if how == "compile" else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    seconds = []
    for step in range(WARM + steps):
        ids = torch.randint(0, config.vocab_size, (rows, length), device=DEVICE)
        wait()
        began = time.perf_counter()
        for part in ids.chunk(MICRO_BATCHES):
            with torch.autocast(DEVICE, torch.bfloat16, enabled=state == "fp32"):
                loss = forward(input_ids=part, labels=part).loss
            (loss / MICRO_BATCHES).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()
        if step >= WARM:
            seconds.append(time.perf_counter() - began)
    seconds.sort()
    return rows * length / seconds[0], rows * length / seconds[len(seconds) // 2]


def report(model, how, state, steps, tiny):
    line = {"bench": "step", "model": model, "peer": f"PyTorch {torch.__version__} {how}", "how": how, "state": state}
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        best, median = measure(model, how, state, steps, tiny)
        line.update(tokens_per_second=round(best), median=round(median))
    except Exception as error: # what does not run here is told, and the others go on
        line["error"] = f"{type(error).__name__} {error}".replace('"', "'").replace("\n", " ")[:200]
    if DEVICE == "cuda":
        line.update(allocated_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2),
                    reserved_gib=round(torch.cuda.max_memory_reserved() / 2**30, 2))
    print(json.dumps(line), flush=True)
    torch._dynamo.reset()
    gc.collect()


if __name__ == "__main__":
    a = argparse.ArgumentParser()
    a.add_argument("--model", default=",".join(SHAPES))
    a.add_argument("--how", default="compile")
    a.add_argument("--state", default="bf16,fp32")
    a.add_argument("--steps", type=int, default=6)
    a.add_argument("--tiny", action="store_true")
    a = a.parse_args()
    torch.manual_seed(0)
    for model in a.model.split(","):
        for state in a.state.split(","):
            for how in a.how.split(","):
                report(model, how, state, a.steps, a.tiny)
