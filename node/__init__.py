"""One host and many: the kernel model with VMs and an agent on it, behind plain calls and gRPC."""
