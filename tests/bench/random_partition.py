"""random_partition.py MOEDISCO CORPUS CLUSTERS SEED FILE: a partition (docs/formats.md) that gives every document a cluster by lot."""
import json
import random
import struct
import subprocess
import sys

moedisco, corpus, clusters, seed, path = sys.argv[1:]
lines = subprocess.run([moedisco, "info", corpus, "--json"], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
found = next(o for o in map(json.loads, lines) if o["event"] == "corpus")
labels = random.Random(int(seed)).choices(range(int(clusters)), k=found["documents"])
data = struct.pack(f"<{len(labels)}i", *labels)
header = json.dumps({
    "__metadata__": {"format": "moedisco-partition", "version": "1", "clusters": clusters, "corpus": found["fingerprint"]},
    "assignments": {"dtype": "I32", "shape": [len(labels)], "data_offsets": [0, len(data)]},
}).encode()
header += b" " * (-len(header) % 8)
with open(path, "wb") as out:
    out.write(struct.pack("<Q", len(header)) + header + data)
