"""The store on etcd, and the rights in it."""

from leeward.store.etcd.auth import EtcdAuth
from leeward.store.etcd.store import EtcdStore
from leeward.store.etcd.tls import EtcdTls

__all__ = ["EtcdAuth", "EtcdStore", "EtcdTls"]
