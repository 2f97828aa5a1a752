"""A cluster of hosts on one machine: each a set of namespaces that can be powered off, cut off and started again."""
