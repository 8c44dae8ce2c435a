"""Version 1: `host_pb2`, `vm_pb2`, `fleet_pb2` and their `_grpc` twins, all generated."""
