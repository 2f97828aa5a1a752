"""What the public API does, free of protobuf and gRPC: one module a resource."""
