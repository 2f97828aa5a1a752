"""How a real etcd is reached, and whom it lets do what."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from tests.support.etcd import EtcdCluster, ServerTls, etcd_cluster

from leeward.clock import SystemClock
from leeward.errors import (
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    StoreUnavailable,
    Unauthenticated,
)
from leeward.store.etcd import EtcdAuth, EtcdStore, EtcdTls
from leeward.store.port import CreateRevisionIs, Put, Store

pytestmark = pytest.mark.etcd

PREFIX = "/leeward/v1/"
SERVER_NAME = "etcd.leeward.test"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_of(authority: trustme.CA, user: str, **server_names: str) -> EtcdTls:
    leaf = authority.issue_cert("client.leeward.test", common_name=user)
    return EtcdTls(
        ca_pem=authority.cert_pem.bytes(),
        cert_pem=leaf.cert_chain_pems[0].bytes(),
        key_pem=leaf.private_key_pem.bytes(),
        server_names=server_names,
    )


@pytest.fixture
def secured(tmp_path: Path, authority: trustme.CA) -> Iterator[EtcdCluster]:
    """One member whose certificate is for `SERVER_NAME` and not for its address."""
    server = authority.issue_cert(SERVER_NAME)
    files = ServerTls(ca=tmp_path / "ca.pem", cert=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    authority.cert_pem.write_to_path(files.ca)
    server.cert_chain_pems[0].write_to_path(files.cert)
    server.private_key_pem.write_to_path(files.key)
    with etcd_cluster(tmp_path / "etcd", tls=files) as cluster:
        yield cluster


class Access:
    """Connections to one secured etcd as whoever a test wants to be."""

    def __init__(self, cluster: EtcdCluster, authority: trustme.CA) -> None:
        self._cluster = cluster
        self._authority = authority

    @asynccontextmanager
    async def store(self, user: str) -> AsyncIterator[EtcdStore]:
        store = EtcdStore(self._cluster.endpoints, tls=self._tls(user), clock=SystemClock())
        try:
            yield store
        finally:
            await store.close()

    @asynccontextmanager
    async def auth(self, user: str) -> AsyncIterator[EtcdAuth]:
        auth = EtcdAuth(self._cluster.endpoints, tls=self._tls(user), clock=SystemClock())
        try:
            yield auth
        finally:
            await auth.close()

    def _tls(self, user: str) -> EtcdTls:
        return tls_of(self._authority, user, **{self._cluster.endpoints[0]: SERVER_NAME})


@pytest.fixture
def access(secured: EtcdCluster, authority: trustme.CA) -> Access:
    return Access(secured, authority)


async def put(store: Store, key: str, lease_id: int = 0) -> None:
    assert (await store.transact([CreateRevisionIs(key, 0)], [Put(key, b"v", lease_id)])).succeeded


async def prepare(auth: EtcdAuth) -> None:
    await auth.bootstrap(prefix=PREFIX, controllers=["controller:c1"], admins=["admin:ann"])
    await auth.add_node_user("node:n1", PREFIX + "leases/n1")
    await auth.add_node_user("node:n2", PREFIX + "leases/n2")
    await auth.enable()


async def test_every_user_can_do_what_it_needs_and_nothing_else(access: Access) -> None:
    async with access.auth("admin:ann") as auth:
        await prepare(auth)
        await prepare(auth)

    mine, other = PREFIX + "leases/n1", PREFIX + "leases/n2"
    async with access.store("node:n1") as node:
        lease_id = await node.grant_lease(5)
        await put(node, mine, lease_id)
        assert await node.keep_alive(lease_id) == 5.0
        assert (await node.get(mine)) is not None
        for denied in (
            put(node, other, lease_id),
            put(node, PREFIX + "instances/x"),
            put(node, mine + "/below"),
            node.get(other),
            node.list(PREFIX),
            first_batch(node, PREFIX),
        ):
            with pytest.raises(PermissionDenied):
                await denied

    async with access.store("controller:c1") as controller:
        await put(controller, PREFIX + "instances/x")
        assert [item.key for item in (await controller.list(PREFIX)).items] == [PREFIX + "instances/x", mine]
        found = await controller.get(mine)
        assert found is not None
        await controller.revoke_lease(found.lease_id)
        assert await controller.get(mine) is None
        await first_batch(controller, PREFIX)
        with pytest.raises(PermissionDenied):
            await put(controller, "/elsewhere")

    async with access.store("stranger") as stranger:
        with pytest.raises(PermissionDenied):
            await stranger.get(mine)
    async with access.auth("controller:c1") as auth:
        with pytest.raises(PermissionDenied):
            await auth.add_node_user("node:n3", PREFIX + "leases/n3")


async def first_batch(store: Store, prefix: str) -> None:
    async with asyncio.timeout(10.0), store.watch(prefix, from_revision=2) as batches:
        await anext(batches)


async def test_a_node_user_keeps_only_its_latest_key_and_can_be_removed(access: Access) -> None:
    async with access.auth("root") as auth:
        await prepare(auth)
        await auth.add_node_user("node:n1", PREFIX + "leases/renamed")
        async with access.store("node:n1") as node:
            await put(node, PREFIX + "leases/renamed")
            with pytest.raises(PermissionDenied):
                await put(node, PREFIX + "leases/n1")
            await auth.remove_node_user("node:n1")
            await auth.remove_node_user("node:n1")
            with pytest.raises(PermissionDenied):
                await node.get(PREFIX + "leases/renamed")
        for user in ("root", "controller:c1"):
            with pytest.raises(FailedPrecondition):
                await auth.add_node_user(user, PREFIX + "leases/n1")


async def test_writers_are_not_disturbed_while_users_are_added(access: Access) -> None:
    async with access.auth("root") as auth, access.store("controller:c1") as controller:
        await prepare(auth)

        async def add_users() -> None:
            for n in range(20):
                await auth.add_node_user(f"node:m{n}", f"{PREFIX}leases/m{n}")

        adding = asyncio.create_task(add_users())
        count = 0
        while not adding.done():
            await put(controller, f"{PREFIX}{count}")
            assert await controller.get(f"{PREFIX}{count}") is not None
            count += 1
        await adding
        assert count > 3


async def test_an_admin_cannot_lock_itself_out(access: Access) -> None:
    async with access.auth("admin:bob") as auth:
        await auth.bootstrap(prefix=PREFIX, controllers=[])
        with pytest.raises(FailedPrecondition, match="admin:bob"):
            await auth.enable()


async def test_a_member_that_cannot_show_its_name_is_not_talked_to(secured: EtcdCluster, authority: trustme.CA) -> None:
    store = EtcdStore(secured.endpoints, tls=tls_of(authority, "root"), clock=SystemClock())
    try:
        with pytest.raises(StoreUnavailable, match="Hostname Verification"):
            await store.keep_alive(1)
    finally:
        await store.close()


async def test_without_a_certificate_nothing_is_answered(secured: EtcdCluster, authority: trustme.CA) -> None:
    for tls in (None, EtcdTls(authority.cert_pem.bytes(), b"", b"", {secured.endpoints[0]: SERVER_NAME})):
        store = EtcdStore(secured.endpoints, tls=tls, clock=SystemClock())
        try:
            with pytest.raises((StoreUnavailable, Unauthenticated)):
                await store.keep_alive(1)
        finally:
            await store.close()


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "localhost"), ("::1", "[::1]")])
async def test_members_are_found_by_name_and_by_either_kind_of_address(tmp_path: Path, host: str, shown: str) -> None:
    with etcd_cluster(tmp_path / uuid.uuid4().hex, host=host) as cluster:
        store = EtcdStore([f"{shown}:{cluster.members[0].client_port}"], tls=None, clock=SystemClock())
        try:
            await put(store, "/a")
        finally:
            await store.close()


@pytest.mark.parametrize(
    "endpoints",
    [[], ["host"], ["host:"], [":1"], ["http://host:1"], ["::1:2379"], ["host:0"], ["host:65536"], ["a:1", "a:1"]],
)
def test_endpoints_are_checked_when_they_are_given(endpoints: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        EtcdStore(endpoints, tls=None, clock=SystemClock())
