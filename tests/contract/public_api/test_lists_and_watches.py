"""Pages, filters, and watches that resume."""

import asyncio
from typing import Any

from tests.contract.public_api.calls import launched, refused
from tests.support.public import WAIT_S, Face, PublicLab, add_flavor

from leeward.errors import (
    Compacted,
    Draining,
    InvalidArgument,
)
from leeward.v1 import flavor_service_pb2 as flavor_pb
from leeward.v1 import instance_service_pb2 as pb
from leeward.v1 import node_service_pb2 as node_pb
from leeward.v1 import watch_pb2


async def test_pages_are_of_one_moment_and_tokens_belong_to_their_list(lab: PublicLab, stocked: Face) -> None:
    for index in range(5):
        await add_flavor(stocked, f"f{index}")
    seen = []
    request = flavor_pb.ListFlavorsRequest(page_size=2)
    page = await stocked.flavors.ListFlavors(request)
    await add_flavor(stocked, "f11")
    await stocked.flavors.DeleteFlavor(flavor_pb.DeleteFlavorRequest(name="flavors/f4"))
    while True:
        seen += [flavor.name for flavor in page.flavors]
        if not page.next_page_token:
            break
        page = await stocked.flavors.ListFlavors(
            flavor_pb.ListFlavorsRequest(page_size=2, page_token=page.next_page_token)
        )
    assert seen == [f"flavors/{name}" for name in ("f0", "f1", "f2", "f3", "f4", "small")]

    token = (await stocked.flavors.ListFlavors(request)).next_page_token
    other = node_pb.ListNodesRequest(page_token=token)
    error = await refused(InvalidArgument, stocked.nodes.ListNodes(other))
    assert [violation.field for violation in error.fields] == ["page_token"]
    now = (await stocked.flavors.ListFlavors(request)).revision
    await add_flavor(stocked, "f5")
    await lab.cluster.store.compact(now + 1)
    late = flavor_pb.ListFlavorsRequest(page_size=2, page_token=token)
    error = await refused(InvalidArgument, stocked.flavors.ListFlavors(late))
    assert error.specific_reason == "PAGE_TOKEN_EXPIRED"


async def test_filters(stocked: Face) -> None:
    await launched(stocked, "a", labels={"tier": "web"})
    await launched(stocked, "b", labels={"tier": "db"})
    for filter_, names in [
        ("labels.tier = web", ["a"]),
        ('state = ACTIVE AND labels.tier != "web"', ["b"]),
        ("state = STOPPED", []),
        ("flavor = flavors/small", ["a", "b"]),
    ]:
        request = pb.ListInstancesRequest(parent="projects/-", filter=filter_)
        found = (await stocked.instances.ListInstances(request)).instances
        assert [instance.name.split("/")[-1] for instance in found] == names, filter_


async def test_a_watch_resumes_without_missing_or_repeating(lab: PublicLab, stocked: Face) -> None:
    await launched(stocked, "a")
    kinds = watch_pb2.WatchEventType
    seen: list[tuple[str, str]] = []
    revision = 0
    async with asyncio.timeout(WAIT_S):
        call = stocked.instances.WatchInstances(pb.WatchInstancesRequest(parent="projects/p"))
        async for event in call:
            seen.append((kinds.Name(event.type), event.instance.name))
            if event.type == watch_pb2.WATCH_EVENT_TYPE_BOOKMARK:
                revision = event.revision
                break
            assert event.revision == 0, "a snapshot cannot be resumed half-way"
        call.cancel()
    assert seen == [("WATCH_EVENT_TYPE_ADDED", "projects/p/instances/a"), ("WATCH_EVENT_TYPE_BOOKMARK", "")]

    await launched(stocked, "b")
    await stocked.ended(await stocked.instances.DeleteInstance(pb.DeleteInstanceRequest(name="projects/p/instances/a")))
    whole = await _watched(stocked, revision, until="projects/p/instances/a")
    assert whole[0][:2] == (watch_pb2.WATCH_EVENT_TYPE_ADDED, "projects/p/instances/b")
    cut = len(whole) // 2
    resumed = await _watched(stocked, whole[cut][2], until="projects/p/instances/a")
    assert whole[: cut + 1] + resumed == whole


async def _watched(face: Face, revision: int, *, until: str) -> list[tuple[int, str, int]]:
    """Changes since a revision until an instance is removed, bookmarks left out."""
    events = []
    async with asyncio.timeout(WAIT_S):
        call = face.instances.WatchInstances(pb.WatchInstancesRequest(parent="projects/p", revision=revision))
        async for event in call:
            if event.type != watch_pb2.WATCH_EVENT_TYPE_BOOKMARK:
                events.append((event.type, event.instance.name, event.revision))
            if event.type == watch_pb2.WATCH_EVENT_TYPE_REMOVED and event.instance.name == until:
                break
        call.cancel()
    return events


async def test_a_watch_that_cannot_resume_says_where_to_begin(lab: PublicLab, stocked: Face) -> None:
    listed = await stocked.instances.ListInstances(pb.ListInstancesRequest(parent="projects/p"))
    await add_flavor(stocked, "x")
    await add_flavor(stocked, "y")
    now = (await stocked.instances.ListInstances(pb.ListInstancesRequest(parent="projects/p"))).revision
    await lab.cluster.store.compact(now)
    request = pb.WatchInstancesRequest(parent="projects/p", revision=listed.revision)
    error = await refused(Compacted, stocked.instances.WatchInstances(request).read())
    assert error.revision == now
    for revision in (now + 1_000_000, -1):
        request = pb.WatchInstancesRequest(parent="projects/p", revision=revision)
        wrong = await refused(InvalidArgument, stocked.instances.WatchInstances(request).read())
        assert [violation.field for violation in wrong.fields] == ["revision"]


async def test_a_stopping_server_tells_watchers_where_to_resume(stocked: Face) -> None:
    async with asyncio.timeout(WAIT_S):
        call = stocked.instances.WatchInstances(pb.WatchInstancesRequest(parent="projects/p"))
        bookmark = await call.read()
        stopping = asyncio.ensure_future(stocked.server.stop(WAIT_S))
        error = await refused(Draining, _drained(call))
        assert int(error.metadata["revision"]) >= bookmark.revision
        assert error.retriable
        await stopping


async def _drained(call: Any) -> None:
    while True:
        await call.read()
