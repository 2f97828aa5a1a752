"""Generated stubs: `etcd_pb2`."""
