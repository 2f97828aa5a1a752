"""The durable store: the port, its etcd adapter and its in-memory twin."""
