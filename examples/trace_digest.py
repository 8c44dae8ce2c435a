"""Recompute a run's digest from its trace file alone: python trace_digest.py FILE."""

import sys
from hashlib import blake2b
from pathlib import Path

data, at, states = Path(sys.argv[1]).read_bytes(), 8, dict[bytes, bytes]()
while at < len(data):
    name = data[at : at + 2 + int.from_bytes(data[at : at + 2], "big")]
    at += len(name) + 4
    record = data[at : at + int.from_bytes(data[at - 4 : at], "big")]
    at += len(record)
    states[name] = blake2b(states.get(name, bytes(32)) + record, digest_size=32).digest()
run = b"".join(name + states[name] for name in sorted(states, key=lambda name: name[2:]))
print(blake2b(run, digest_size=32).hexdigest())
