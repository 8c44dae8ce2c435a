"""Recompute a run's digest from its trace file alone: python trace_digest.py FILE."""
import hashlib, struct, sys
data, at, states = open(sys.argv[1], "rb").read(), 8, {}
while at < len(data):
    n, = struct.unpack_from(">H", data, at); name = data[at : at + 2 + n]; at += 2 + n
    n, = struct.unpack_from(">I", data, at); record = data[at + 4 : at + 4 + n]; at += 4 + n
    states[name] = hashlib.blake2b(states.get(name, bytes(32)) + record, digest_size=32).digest()
print(hashlib.blake2b(b"".join(k + states[k] for k in sorted(states, key=lambda k: k[2:])), digest_size=32).hexdigest())
