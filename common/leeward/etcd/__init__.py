"""The part of etcd's API that Leeward speaks; generated from `protos/leeward/etcd`."""
