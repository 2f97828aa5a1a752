"""`leeward pki` and `leeward admin` from nothing to an etcd that gives everyone what is theirs."""

import asyncio
from pathlib import Path

import pytest
from tests.support.etcd import ServerTls, etcd_cluster

from leeward import keys
from leeward.cli.main import run
from leeward.clock import SystemClock
from leeward.errors import PermissionDenied
from leeward.identity import ETCD_SERVER_NAME
from leeward.store.etcd import EtcdStore, EtcdTls
from leeward.store.port import CreateRevisionIs, Put
from leeward.tls import TlsFiles, TlsMaterial

pytestmark = pytest.mark.etcd


def test_a_cluster_is_set_up_from_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pki = tmp_path / "pki"
    assert run(["pki", "init", str(pki)]) == 0
    assert run(["pki", "issue", "etcd", "etcd-1", str(pki), "--san", "127.0.0.1"]) == 0
    for role, name in (("admin", "alice"), ("controller", "c1"), ("agent", "host-a"), ("agent", "host-b")):
        assert run(["pki", "issue", role, name, str(pki)]) == 0
    server = TlsFiles.in_directory(pki / "etcd-etcd-1")
    with etcd_cluster(tmp_path / "etcd", tls=ServerTls(ca=server.ca, cert=server.cert, key=server.key)) as cluster:
        at = [part for endpoint in cluster.endpoints for part in ("--etcd", endpoint)]
        as_alice = ["--tls-dir", str(pki / "admin-alice")]
        for _ in range(2):
            # Once rights are enforced it may be repeated, e.g. to add a controller.
            assert run(["admin", "init-etcd", *at, *as_alice, "--controller", "c1"]) == 0, capsys.readouterr().err
        assert run(["admin", "add-node", "host-a", *at, *as_alice]) == 0
        assert keys.lease("host-a") in capsys.readouterr().out
        refused = run(["admin", "add-node", "host-b", *at, "--tls-dir", str(pki / "agent-host-b")])
        assert refused == 6
        assert "leeward pki issue admin" in capsys.readouterr().err
        asyncio.run(rights_hold(cluster.endpoints, pki))
        assert run(["admin", "remove-node", "host-a", *at, *as_alice]) == 0


async def rights_hold(endpoints: list[str], pki: Path) -> None:
    await put(endpoints, pki / "controller-c1", keys.node("host-a"))
    await put(endpoints, pki / "agent-host-a", keys.lease("host-a"))
    with pytest.raises(PermissionDenied):
        await put(endpoints, pki / "agent-host-a", keys.lease("host-b"))


async def put(endpoints: list[str], directory: Path, key: str) -> None:
    """Create a key as whoever the certificate in `directory` names."""
    material = TlsMaterial.load(directory)
    names = dict.fromkeys(endpoints, ETCD_SERVER_NAME)
    tls = EtcdTls(material.ca_pem, material.cert_pem, material.key_pem, server_names=names)
    store = EtcdStore(endpoints, tls=tls, clock=SystemClock())
    try:
        assert (await store.transact([CreateRevisionIs(key, 0)], [Put(key, b"v", 0)])).succeeded
    finally:
        await store.close()
