"""A whole real cluster on this machine: etcd, controllers, agents, guards, in hosts made of namespaces, over TLS."""
