"""The gRPC interface of lufleet."""
