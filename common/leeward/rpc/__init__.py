"""gRPC plumbing that the SDK, the controllers and the agents share: errors, identity, channels and servers."""
