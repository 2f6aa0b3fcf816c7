#!/usr/bin/env python3
"""Makes tests/fixtures/transformers: what Hugging Face Transformers computes, for test_transformers.c to compare with.

    python tests/peers/transformers_fixture.py [NAME...]

Needs torch and transformers (written with 2.15 and 5.24), CPU only. For three tiny random configurations or more of each family, or
those named, it writes tests/fixtures/transformers/NAME/: config.json and model.safetensors by save_pretrained (read back by
from_pretrained and compared), and expected.safetensors:

    tokens, labels  I32 (10, rows, length)  one batch per step; labels stand at the position that predicts them, -1 = none
    logits          (rows, length, vocabulary) of batch 0
    gradient.NAME   of the mean cross-entropy of batch 0
    losses          (10) mean cross-entropy before each of ten AdamW steps, one on each batch
    final_logits    of batch 0 after the ten steps
    norms.NAME      (1) of each weight after the ten steps

AdamW: rate 1e-3, betas 0.9 and 0.95, epsilon 1e-8, decoupled decay 0.01 on matrices only, no clipping, no auxiliary loss.
"""
import os
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import (AutoModelForCausalLM, Dots1Config, Dots1ForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig,
                          MistralForCausalLM, MixtralConfig, MixtralForCausalLM, OlmoeConfig, OlmoeForCausalLM, Qwen2MoeConfig,
                          Qwen2MoeForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM)

STEPS, ROWS, LENGTH, VOCABULARY = 10, 2, 12, 53
SAFE_MARGIN = 2e-4  # between the last expert chosen and the first left out: rounding must not decide

COMMON = dict(vocab_size=VOCABULARY, max_position_embeddings=64, initializer_range=0.2, bos_token_id=None, eos_token_id=None)


def qwen(**more):
    return Qwen2MoeForCausalLM, Qwen2MoeConfig(**{**COMMON, **more})


def mixtral(**more):
    return MixtralForCausalLM, MixtralConfig(**{**COMMON, **more})


TINY = dict(vocab_size=29, hidden_size=8, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_experts_per_tok=2,
            pad_token_id=None)


def olmoe(**more):
    return OlmoeForCausalLM, OlmoeConfig(**{**COMMON, **TINY, "intermediate_size": 6, "num_experts": 4, **more})


def qwen3(**more):
    return Qwen3MoeForCausalLM, Qwen3MoeConfig(**{**COMMON, **TINY, "intermediate_size": 10, "moe_intermediate_size": 6,
                                                  "num_experts": 4, **more})


def dots(**more):
    return Dots1ForCausalLM, Dots1Config(**{**COMMON, **TINY, "intermediate_size": 10, "moe_intermediate_size": 6, "n_routed_experts": 4,
                                            "n_shared_experts": 1, **more})


DENSE = dict(vocab_size=29, hidden_size=8, num_hidden_layers=2, num_attention_heads=4, intermediate_size=6, pad_token_id=None)
CONFIGURATIONS = {
    # dense: an only expert without a router
    "mistral-a": (MistralForCausalLM, MistralConfig(**{**COMMON, **DENSE}, num_key_value_heads=2, head_dim=4, sliding_window=None)),
    "llama-a": (LlamaForCausalLM, LlamaConfig(**{**COMMON, **DENSE}, attention_bias=True, tie_word_embeddings=True)),
    "qwen3-a": (Qwen3ForCausalLM, Qwen3Config(**{**COMMON, **DENSE}, num_key_value_heads=1, head_dim=6)),
    # untied, grouped queries, biases, probabilities as they are
    "qwen2_moe-a": qwen(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_experts=4,
                        num_experts_per_tok=2, moe_intermediate_size=8, shared_expert_intermediate_size=12, intermediate_size=16,
                        norm_topk_prob=False, tie_word_embeddings=False),
    # tied, as many key heads as query heads, normalised weights, more experts
    "qwen2_moe-b": qwen(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, num_key_value_heads=3, num_experts=6,
                        num_experts_per_tok=3, moe_intermediate_size=10, shared_expert_intermediate_size=16, intermediate_size=16,
                        norm_topk_prob=True, tie_word_embeddings=True, rms_norm_eps=1e-5, rope_theta=1e6),
    # a one-expert submodel, no biases, one key head
    "qwen2_moe-c": qwen(hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, num_experts=1,
                        num_experts_per_tok=1, moe_intermediate_size=8, shared_expert_intermediate_size=8, intermediate_size=16,
                        norm_topk_prob=False, tie_word_embeddings=False, qkv_bias=False),
    # untied, grouped queries
    "mixtral-a": mixtral(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
                         num_experts_per_tok=2, intermediate_size=12, tie_word_embeddings=False, rms_norm_eps=1e-5),
    # tied, heads wider than hidden / heads, eight experts
    "mixtral-b": mixtral(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
                         num_local_experts=8, num_experts_per_tok=2, intermediate_size=8, tie_word_embeddings=True, rope_theta=1e4),
    # one key head, three choices out of four (with one choice the router's gradient is rounding alone, which AdamW blows up)
    "mixtral-c": mixtral(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, num_local_experts=4,
                         num_experts_per_tok=3, intermediate_size=8, tie_word_embeddings=False),
    # experts in every second layer; positions stretched evenly
    "qwen2_moe-d": qwen(**{**TINY, "num_hidden_layers": 3}, num_experts=3, moe_intermediate_size=6, shared_expert_intermediate_size=5,
                        intermediate_size=10, decoder_sparse_step=2, norm_topk_prob=False, tie_word_embeddings=True,
                        rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.0)),
    # untied, grouped queries, probabilities as they are
    "olmoe-a": olmoe(norm_topk_prob=False),
    # tied, biases of all four projections, normalised weights, positions by yarn
    "olmoe-b": olmoe(num_hidden_layers=1, num_key_value_heads=4, norm_topk_prob=True, tie_word_embeddings=True, attention_bias=True,
                     rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=16)),
    # a one-expert submodel, one key head
    "olmoe-c": olmoe(num_experts=1, num_experts_per_tok=1, num_key_value_heads=1),
    # untied, heads wider than hidden / heads, a dense layer between two with experts
    "qwen3_moe-a": qwen3(num_hidden_layers=3, head_dim=4, mlp_only_layers=[1], norm_topk_prob=False),
    # tied, biases, normalised weights, experts in every second layer, positions as Llama 3.1's
    "qwen3_moe-b": qwen3(num_hidden_layers=3, head_dim=6, decoder_sparse_step=2, norm_topk_prob=True, tie_word_embeddings=True,
                         attention_bias=True, rope_parameters=dict(rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0,
                                                                   high_freq_factor=4.0, original_max_position_embeddings=16)),
    # a one-expert submodel, one key head; "dynamic" changes rows beyond max_position_embeddings only
    "qwen3_moe-c": qwen3(num_experts=1, num_experts_per_tok=1, num_key_value_heads=1, head_dim=4,
                         rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=2.0)),
    # a dense first layer, two shared experts, weights normalised and scaled
    "dots1-a": dots(first_k_dense_replace=1, n_shared_experts=2, routed_scaling_factor=2.5, norm_topk_prob=True),
    # tied, biases, scores as they are, positions by yarn with its own magnitude
    "dots1-b": dots(num_hidden_layers=1, tie_word_embeddings=True, attention_bias=True, norm_topk_prob=False, n_routed_experts=5,
                    rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=16, beta_fast=8.0,
                                         mscale=1.0, mscale_all_dim=0.5, truncate=False)),
    # the same model as Transformers has it in memory: experts stacked
    "mixtral-stacked": mixtral(**TINY, intermediate_size=6, num_local_experts=3),
    "qwen3_moe-stacked": qwen3(mlp_only_layers=[0], head_dim=2),
    # one key head, three choices out of four, scaled but not normalised
    "dots1-c": dots(num_key_value_heads=1, num_experts_per_tok=3, norm_topk_prob=False, routed_scaling_factor=0.5),
}


def hub_names(name, tensor):
    """A parameter of this Transformers version as the per-expert tensors that save_pretrained writes and the hub holds."""
    if ".mlp.experts." not in name:
        yield (name, tensor)
        return
    stem, kind = name.split(".mlp.experts.")
    for e in range(tensor.shape[0]):
        if kind == "down_proj":
            yield f"{stem}.mlp.experts.{e}.down_proj.weight", tensor[e]
        else:
            half = tensor.shape[1] // 2
            yield f"{stem}.mlp.experts.{e}.gate_proj.weight", tensor[e, :half]
            yield f"{stem}.mlp.experts.{e}.up_proj.weight", tensor[e, half:]


def mixtral_name(name):
    for ours, theirs in ((".gate_proj.", ".w1."), (".down_proj.", ".w2."), (".up_proj.", ".w3."), (".mlp.", ".block_sparse_moe.")):
        name = name.replace(ours, theirs)
    return name


def weights_of(model):
    """{name: tensor} of all that is saved: selection biases are no parameters to PyTorch."""
    return {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")}}


def named(model, family, tensors):
    """{hub name: tensor} of {parameter name: tensor}."""
    out = {}
    for name, tensor in tensors.items():
        for hub, part in hub_names(name, tensor):
            out[mixtral_name(hub) if family == "mixtral" else hub] = part.detach().clone().contiguous()
    return out


def randomise(model, generator):
    """Norms and biases would start as ones and zeros, and hide faults."""
    with torch.no_grad():
        for name, p in weights_of(model).items():
            if p.dim() == 1:
                p.add_(torch.randn(p.shape, generator=generator) * 0.2)


def cross_entropy(model, tokens, labels):
    logits = model(input_ids=tokens).logits
    return logits, torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long(), ignore_index=-1)


def margin(model, tokens):
    """Smallest distance in router logits, or in what is chosen by, between the chosen and the rest."""
    smallest = float("inf")
    if not hasattr(model.config, "num_experts_per_tok"):
        return smallest  # dense
    biases = [b for n, b in weights_of(model).items() if n.endswith("e_score_correction_bias")]
    for i, logits in enumerate(model(input_ids=tokens, output_router_logits=True).router_logits):
        if biases:
            logits = logits.sigmoid() + biases[i]
        k = model.config.num_experts_per_tok
        if logits.shape[-1] > k:
            ordered = logits.float().sort(dim=-1, descending=True).values
            smallest = min(smallest, float((ordered[:, k - 1] - ordered[:, k]).min().detach()))
    return smallest


def steps(model, tokens, labels):
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], lr=1e-3,
                                  betas=(0.9, 0.95), eps=1e-8, foreach=False)
    losses, smallest = [], float("inf")
    for step in range(STEPS):
        smallest = min(smallest, margin(model, tokens[step]))
        optimizer.zero_grad()
        loss = cross_entropy(model, tokens[step], labels[step])[1]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses), min(smallest, margin(model, tokens[0]))


def make(folder, kind, config, seed):
    """Writes one fixture; False when an expert was chosen by less than SAFE_MARGIN."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = kind(config).float()
    randomise(model, generator)
    tokens, labels = batches(config.vocab_size, generator)

    shutil.rmtree(folder, ignore_errors=True)
    stacked = folder.endswith("-stacked")
    model.save_pretrained(folder, save_original_format=not stacked)
    os.remove(os.path.join(folder, "generation_config.json"))
    family = config.model_type
    saved = load_file(os.path.join(folder, "model.safetensors"))
    weights = weights_of(model) if stacked else named(model, family, weights_of(model))
    assert set(saved) == set(weights) and all(torch.equal(saved[n], weights[n]) for n in saved), "not the hub's names"
    again = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", experts_implementation="eager")
    assert torch.equal(model(input_ids=tokens[0]).logits, again(input_ids=tokens[0]).logits), "from_pretrained read something else"
    return record(folder, model, family, tokens, labels, seed)


def batches(vocabulary, generator):
    tokens = torch.randint(0, vocabulary, (STEPS, ROWS, LENGTH), generator=generator, dtype=torch.int32)
    labels = torch.randint(0, vocabulary, (STEPS, ROWS, LENGTH), generator=generator, dtype=torch.int32)
    labels[:, 0, -3:] = -1
    return tokens, labels


def record(folder, model, family, tokens, labels, seed):
    """Writes expected.safetensors, and says whether experts were chosen by SAFE_MARGIN."""
    out = {"tokens": tokens, "labels": labels}
    logits, loss = cross_entropy(model, tokens[0], labels[0])
    loss.backward()
    out["logits"] = logits.detach()
    gradients = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in model.named_parameters()}
    for name, gradient in named(model, family, gradients).items():
        out["gradient." + name] = gradient
    out["losses"], smallest = steps(model, tokens, labels)
    out["final_logits"] = cross_entropy(model, tokens[0], labels[0])[0].detach()
    for name, weight in named(model, family, weights_of(model)).items():
        out["norms." + name] = weight.norm().reshape(1)
    expected = os.path.join(folder, "expected.safetensors")
    save_file({n: t.contiguous() for n, t in out.items()}, expected)
    for file in os.listdir(folder):
        os.chmod(os.path.join(folder, file), 0o644)
    print(f"{os.path.basename(folder)}: seed {seed}, margin {smallest:.1e}, losses {out['losses'][0]:.4f} .. {out['losses'][-1]:.4f}")
    return smallest >= SAFE_MARGIN


def main():
    folder = os.path.join(os.path.dirname(__file__), "..", "fixtures", "transformers")
    for name in sys.argv[1:] or CONFIGURATIONS:
        kind, config = CONFIGURATIONS[name]
        if not any(make(os.path.join(folder, name), kind, config, seed) for seed in range(1, 50)):
            sys.exit(f"{name}: no seed keeps the experts {SAFE_MARGIN} apart")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
