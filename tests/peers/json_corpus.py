"""json_corpus.py FILE: what one would write instead of moed_corpus_build: the documents of JSON lines (or a whole text file) as bytes, two a
token, each document ended by 256, in a file beside it, synced; and where each begins. Prints the seconds, without Python's own start."""
import json
import os
import sys
import time

import numpy

path = sys.argv[1]
began = time.perf_counter()
starts = [0]
with open(path, "rb") as source, open(path + ".peer", "wb") as out:
    documents = (json.loads(line)["text"].encode() for line in source) if path.endswith(".jsonl") else [source.read()]
    for document in documents:
        tokens = numpy.empty(len(document) + 1, numpy.uint16)
        tokens[:-1] = numpy.frombuffer(document, numpy.uint8)
        tokens[-1] = 256
        out.write(tokens)
        starts.append(starts[-1] + len(tokens))
    out.flush()
    os.fsync(out.fileno())
with open(path + ".peer.idx", "wb") as index:
    index.write(numpy.array(starts, numpy.int64))
    index.flush()
    os.fsync(index.fileno())
print(time.perf_counter() - began)
