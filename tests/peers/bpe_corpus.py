"""bpe_corpus.py PREFIX FILE...: trains a byte-level BPE of 8,192 entries on 6,000 documents of the first file (ENTRIES, DOCUMENTS) and writes all documents of
JSON lines (.jsonl, .jsonl.zst) with it: PREFIX.bin, PREFIX.idx, PREFIX.json (docs/formats.md) and PREFIX.tokenizer.json. Token 0 ends a
document. Needs Hugging Face tokenizers and numpy, and the zstd command for .zst."""
import json
import os
import random
import subprocess
import sys

import numpy
from tokenizers import Tokenizer, models, pre_tokenizers, trainers


def documents(path):
    if not path.endswith(".zst"):
        with open(path, encoding="utf-8") as source:
            return [json.loads(line)["text"] for line in source]
    text = subprocess.run(["zstd", "-dc", path], check=True, stdout=subprocess.PIPE).stdout
    return [json.loads(line)["text"] for line in text.split(b"\n") if line]


def trained_on(texts, entries):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=entries, special_tokens=["<eos>"], initial_alphabet=alphabet))
    return tokenizer


def write(prefix, token_lists, description):
    lengths = numpy.array([len(tokens) for tokens in token_lists], numpy.int32)
    starts = numpy.zeros(len(lengths), numpy.int64)
    starts[1:] = 2 * numpy.cumsum(lengths[:-1], dtype=numpy.int64)
    with open(prefix + ".bin", "wb") as out:
        for tokens in token_lists:
            out.write(numpy.array(tokens, "<u2"))
    with open(prefix + ".idx", "wb") as out:
        out.write(b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + bytes([8]))
        out.write(numpy.array([len(lengths), len(lengths) + 1], "<u8"))
        out.write(lengths.astype("<i4"))
        out.write(starts.astype("<i8"))
        out.write(numpy.arange(len(lengths) + 1, dtype="<i8"))
    with open(prefix + ".json", "w", encoding="utf-8") as out:
        json.dump(description | {"documents": len(lengths), "tokens": int(lengths.sum())}, out, indent=2)
        out.write("\n")


def main(prefix, *paths):
    entries, sample = int(os.environ.get("ENTRIES", 8192)), int(os.environ.get("DOCUMENTS", 6000))
    first = documents(paths[0])
    tokenizer = trained_on(random.Random(0).sample(first, min(sample, len(first))), entries)
    tokenizer.save(prefix + ".tokenizer.json")
    encoded = []
    for texts in [first] + [documents(path) for path in paths[1:]]:
        encoded += [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    write(prefix, encoded, {"format": "moedisco-corpus", "version": 1, "tokenizer": "byte-level BPE",
                            "vocabulary": tokenizer.get_vocab_size(), "end_token": 0, "end_token_stored": False,
                            "source": " ".join(os.path.basename(path) for path in paths)})


main(*sys.argv[1:])
