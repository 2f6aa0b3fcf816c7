#!/usr/bin/env python3
"""`moedisco eval --task` beside lm-evaluation-harness: the choice made for every item, and its likelihoods.

    python tests/peers/lm_eval_choices.py MOEDISCO DATA TOKENIZER.json [ITEMS]
    python tests/peers/lm_eval_choices.py MOEDISCO --fixture

Needs lm_eval (written with 0.4.13), torch, transformers, datasets, tokenizers; PATH's python3 runs moedisco-tokenize. DATA holds
arc_easy.jsonl, piqa_valid.jsonl and piqa_valid_labels.txt; ITEMS: the first so many of each, none = all. The model is a random one that
`moedisco init` writes and Transformers loads, once with byte tokens and once with those of TOKENIZER.json. The harness's own task files
are used; only where the items come from is replaced. Exit status 1 when a choice differs.

--fixture: writes tests/fixtures/choices/*.expected, one item a line, of the items there, for tests/check_choices.sh.
"""
import json
import os
import subprocess
import sys
import tempfile

import lm_eval
import yaml
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

TASKS = {"arc_easy": "arc/arc_easy.yaml", "piqa": "piqa/piqa.yaml"}
INIT = ["--family", "mixtral", "--hidden", "32", "--layers", "2", "--heads", "4", "--experts", "4", "--expert-width", "48",
        "--init-std", "0.3", "--seed", "5", "--context-length", "4096"]


def byte_tokenizer():
    """Token = byte; 256 ends a document."""
    alphabet = bytes_to_unicode()
    tokenizer = Tokenizer(models.BPE(vocab={alphabet[b]: b for b in range(256)} | {"<end>": 256}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def bytes_to_unicode():
    """The characters that stand for bytes in byte-level BPE: printable ones for themselves, the others from 256 up."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return {b: chr(b) if b in own else chr(next(others)) for b in range(256)}


def hub_items(task, path, labels):
    """Items of a local file as the harness's data set has them."""
    with open(path, encoding="utf-8") as lines:
        items = [json.loads(line) for line in lines if line.strip()]
    if task == "piqa":
        return [item | {"label": item.get("label", label)} for item, label in zip(items, labels or [None] * len(items))]
    return [{"question": item["query"].removeprefix("Question: "), "answerKey": str(item["gold"]),
             "choices": {"text": item["choices"], "label": [str(k) for k in range(len(item["choices"]))]}} for item in items]


def harness(model, tokenizer, task, items, work):
    """Per item: the likelihoods of its choices and what the harness counts."""
    data = os.path.join(work, f"{task}.json")
    with open(data, "w", encoding="utf-8") as out:
        out.write("\n".join(json.dumps(item) for item in items))
    with open(os.path.join(os.path.dirname(lm_eval.__file__), "tasks", TASKS[task]), encoding="utf-8") as text:
        config = yaml.safe_load(text)
    split = config["test_split"] or config["validation_split"]
    config |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {split: data}, "cache_dir": work},
               "training_split": None, "validation_split": None, "test_split": split, "task": f"local_{task}",
               "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm", "acc_bytes")]}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=tokenizer.id_to_token(tokenizer.get_vocab_size() - 1))
    lm = HFLM(pretrained=model, tokenizer=wrapped, batch_size=8, device="cpu")
    result = lm_eval.simple_evaluate(model=lm, tasks=[config], log_samples=True, bootstrap_iters=1)
    samples = sorted(result["samples"][f"local_{task}"], key=lambda sample: sample["doc_id"])
    return samples, result["results"][f"local_{task}"]


def likelihoods(sample):
    return [float(r[0][0] if isinstance(r[0], (list, tuple)) else r[0]) for r in sample["filtered_resps"]]


def choices_of(sample, items):
    """The harness logs whether an item was right, not what was chosen: its own arithmetic again (api/task.py)."""
    lls = likelihoods(sample)
    texts = sample["doc"]["choices"]["text"] if "choices" in sample["doc"] else [sample["doc"]["sol1"], sample["doc"]["sol2"]]
    units = ([1.0] * len(lls), [float(len(t)) for t in texts], [float(len(t.encode())) for t in texts])
    return [max(range(len(lls)), key=lambda k: (lls[k] / u[k], -k)) for u in units]


def ours(moedisco, model, task, path, more):
    out = subprocess.run([moedisco, "eval", model, path, "--task", task, "--json", *more], check=True, stdout=subprocess.PIPE).stdout
    lines = [json.loads(line) for line in out.splitlines()]
    return [line for line in lines if line["event"] == "item"], next(line for line in lines if line["event"] == "task")


def compare(moedisco, model_dir, model, tokenizer, task, path, labels_path, count, work):
    labels = None
    if labels_path:
        with open(labels_path, encoding="utf-8") as lines:
            labels = [int(line) for line in lines]
    items = hub_items(task, path, labels)[:count]
    theirs, totals = harness(model, tokenizer, task, items, work)
    more = (["--labels", labels_path] if labels_path else []) + (["--items", str(count)] if count else [])
    mine, result = ours(moedisco, model_dir, task, path, more)
    assert len(mine) == len(theirs) == len(items)
    names = ("acc", "acc_norm", "acc_bytes")
    differ = {name: 0 for name in names}
    apart = []
    for a, b in zip(mine, theirs):
        for name, choice in zip(names, choices_of(b, items)):
            differ[name] += a[name] != choice
            assert b[name] == float(choice == a["gold"]), (b[name], choice, a["gold"])  # the arithmetic above is the harness's
        apart += [abs(x - y) for x, y in zip(a["likelihoods"], likelihoods(b))]
    for name in names:
        assert abs(result[name] - totals[f"{name},none"]) < 1e-9 or differ[name]
        assert abs(result[f"{name}_stderr"] - totals[f"{name}_stderr,none"]) < 1e-9 or differ[name]
    print(f"{task}, {tokenizer.get_vocab_size()} tokens: {len(items)} items, choices that differ: {differ}; log-likelihoods differ by "
          f"{sorted(apart)[len(apart) // 2]:.1g} (median), {max(apart):.2g} (worst), {sum(x > 0.01 for x in apart)} of {len(apart)} by more "
          f"than 0.01; acc {result['acc']:.4f} +- {result['acc_stderr']:.4f}, acc_norm {result['acc_norm']:.4f}", flush=True)
    return sum(differ.values()), theirs


def make_model(moedisco, work, tokenizer):
    vocabulary = tokenizer.get_vocab_size()
    where = os.path.join(work, f"model-{vocabulary}")
    subprocess.run([moedisco, "init", where, *INIT, "--vocabulary", str(vocabulary)], check=True, stdout=subprocess.DEVNULL)
    if vocabulary != 257:
        tokenizer.save(os.path.join(where, "tokenizer.json"))
    return where, AutoModelForCausalLM.from_pretrained(where, dtype="float32").eval()


def fixture(moedisco, work):
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures", "choices")
    tokenizer = byte_tokenizer()
    where, model = make_model(moedisco, work, tokenizer)
    differ = 0
    for task in TASKS:
        wrong, samples = compare(moedisco, where, model, tokenizer, task, os.path.join(folder, f"{task}.jsonl"), None, None, work)
        differ += wrong
        with open(os.path.join(folder, f"{task}.expected"), "w", encoding="utf-8") as out:
            for sample in samples:
                print(*choices_of(sample, None), *(f"{x:.5f}" for x in likelihoods(sample)), file=out)
    return differ


def main(moedisco, data, *more):
    with tempfile.TemporaryDirectory() as work:
        if data == "--fixture":
            return fixture(moedisco, work)
        count, differ = int(more[1]) if len(more) > 1 else None, 0
        for tokenizer in (byte_tokenizer(), Tokenizer.from_file(more[0])):
            where, model = make_model(moedisco, work, tokenizer)
            for task, file, labels in (("arc_easy", "arc_easy.jsonl", None), ("piqa", "piqa_valid.jsonl", "piqa_valid_labels.txt")):
                labels = labels and os.path.join(data, labels)
                differ += compare(moedisco, where, model, tokenizer, task, os.path.join(data, file), labels, count, work)[0]
        return differ


if __name__ == "__main__":
    sys.exit(1 if main(*sys.argv[1:]) else 0)
