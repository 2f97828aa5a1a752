"""The SDK over real gRPC: failing over, resuming, and never doing a thing twice."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.longrunning.operations_pb2 import Operation
from google.protobuf.empty_pb2 import Empty

from leeward.client import ChangeKind, Client, Limits, connect
from leeward.clock import RandomIds
from leeward.errors import (
    Compacted,
    DataLoss,
    DeadlineExceeded,
    Draining,
    ImageRefused,
    InvalidArgument,
    NoNodeFits,
    NotFound,
    Unavailable,
    WrongState,
)
from leeward.identity import Principal, Role
from leeward.pki import init_ca
from leeward.rpc.server import RpcServer, ServerConfig
from leeward.rpc.status import status_of
from leeward.tls import TlsMaterial
from leeward.v1 import (
    flavor_service_pb2_grpc,
    image_service_pb2_grpc,
    instance_service_pb2_grpc,
    operation_service_pb2_grpc,
)
from leeward.v1.flavor_service_pb2 import DeleteFlavorRequest
from leeward.v1.image_pb2 import DiskFormat, Image
from leeward.v1.image_service_pb2 import DownloadImageResponse, GetImageRequest
from leeward.v1.instance_pb2 import Instance
from leeward.v1.instance_service_pb2 import (
    GetInstanceRequest,
    ListInstancesResponse,
    StopInstanceRequest,
    WatchInstancesResponse,
)
from leeward.v1.operation_service_pb2 import WatchOperationResponse

POLICY = {"/": frozenset(Role)}
NAME = "projects/default/instances/web-1"
OPERATION = "operations/" + "a" * 26
LIMITS = Limits(deadline_s=5, attempt_s=0.5, patience_s=1, stream_patience_s=2)

Handler = Callable[[Any, Any], Any]


@dataclass
class Script:
    """A controller that answers as a test tells it. `calls` are the requests it has got, by method."""

    handlers: dict[str, Handler] = field(default_factory=dict)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    address: str = ""

    def got(self, method: str) -> list[Any]:
        return [request for name, request in self.calls if name == method]

    def unary(self, method: str) -> Handler:
        async def handle(request: Any, context: Any) -> Any:
            self.calls.append((method, request))
            return await self.handlers[method](request, context)

        return handle

    def stream(self, method: str) -> Handler:
        async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
            self.calls.append((method, request))
            async for message in self.handlers[method](request, context):
                yield message

        return handle


_SERVICERS = (
    (instance_service_pb2_grpc, "InstanceService"),
    (flavor_service_pb2_grpc, "FlavorService"),
    (image_service_pb2_grpc, "ImageService"),
    (operation_service_pb2_grpc, "OperationService"),
)


@asynccontextmanager
async def scripted(tls: TlsMaterial | None = None, **handlers: Handler) -> AsyncIterator[Script]:
    script = Script(handlers)
    principal = Principal.of(Role.ADMIN, "test")
    config = ServerConfig(["127.0.0.1:0"], tls=tls, policy=POLICY, plaintext_principal=principal)
    server = RpcServer(config, ids=RandomIds())
    for module, service in _SERVICERS:
        base = getattr(module, f"{service}Servicer")
        servicer = base()
        for method in handlers:
            if hasattr(base, method):
                streams = method.startswith(("Watch", "Download"))
                setattr(servicer, method, script.stream(method) if streams else script.unary(method))
        getattr(module, f"add_{service}Servicer_to_server")(servicer, server.grpc_server)
    await server.start()
    script.address = f"127.0.0.1:{server.ports[0]}"
    try:
        yield script
    finally:
        await server.stop(0)


def client_of(*scripts: Script | str, limits: Limits = LIMITS) -> Client:
    return connect([each if isinstance(each, str) else each.address for each in scripts], limits=limits)


def answers(response: Any) -> Handler:
    async def handle(request: Any, context: Any) -> Any:
        return response

    return handle


def raises(error: Exception) -> Handler:
    async def handle(request: Any, context: Any) -> Any:
        raise error

    return handle


async def hangs(request: Any, context: Any) -> Any:
    await asyncio.Event().wait()


def tells(*messages: Any) -> Handler:
    """A stream of these messages; an exception among them is raised."""

    async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
        for message in messages:
            if isinstance(message, Exception):
                raise message
            yield message

    return handle


CLOSED = "127.0.0.1:1"


async def test_a_dead_endpoint_is_passed_over_and_the_good_one_kept() -> None:
    async with scripted(GetInstance=answers(Instance(name=NAME))) as alive, client_of(CLOSED, alive) as client:
        for _ in range(3):
            assert (await client.instances.GetInstance(GetInstanceRequest(name=NAME))).name == NAME
        assert client.endpoints.current == alive.address


async def test_a_change_that_may_have_happened_is_repeated_under_its_own_request_id() -> None:
    done = Operation(name=OPERATION)
    async with (
        scripted(StopInstance=hangs) as stuck,
        scripted(StopInstance=answers(done)) as alive,
        client_of(stuck, alive) as client,
    ):
        request = StopInstanceRequest(name=NAME)
        assert await client.instances.StopInstance(request) == done
        first, second = stuck.got("StopInstance"), alive.got("StopInstance")
        assert len(first) == len(second) == 1
        assert first[0].request_id == second[0].request_id != ""
        assert request.request_id == ""
        await client.instances.StopInstance(request)
        assert alive.got("StopInstance")[1].request_id != first[0].request_id


async def test_a_change_without_request_id_is_never_sent_twice() -> None:
    async with (
        scripted(DeleteFlavor=hangs) as stuck,
        scripted(DeleteFlavor=answers(Empty())) as alive,
        client_of(stuck, alive) as client,
    ):
        with pytest.raises(DeadlineExceeded):
            await client.flavors.DeleteFlavor(DeleteFlavorRequest(name="flavors/f"), timeout=0.8)
        assert alive.got("DeleteFlavor") == []


async def test_what_a_server_says_it_did_not_do_goes_to_the_next() -> None:
    async with (
        scripted(DeleteFlavor=raises(Draining("stopping"))) as stopping,
        scripted(DeleteFlavor=answers(Empty())) as alive,
        client_of(stopping, alive) as client,
    ):
        await client.flavors.DeleteFlavor(DeleteFlavorRequest(name="flavors/f"))
        assert len(stopping.got("DeleteFlavor")) == len(alive.got("DeleteFlavor")) == 1


async def test_a_refusal_is_final_and_keeps_its_class() -> None:
    refusal = WrongState("it is STOPPED", metadata={"allowed_states": "ACTIVE"})
    async with (
        scripted(StopInstance=raises(refusal)) as first,
        scripted(StopInstance=answers(Operation())) as second,
        client_of(first, second) as client,
    ):
        with pytest.raises(WrongState, match="it is STOPPED") as raised:
            await client.instances.StopInstance(StopInstanceRequest(name=NAME))
        assert raised.value.metadata["allowed_states"] == "ACTIVE"
        assert second.calls == []


async def test_when_nobody_answers_patience_ends_and_all_are_named() -> None:
    started = asyncio.get_running_loop().time()
    async with client_of(CLOSED, "localhost:1") as client:
        with pytest.raises(Unavailable) as raised:
            await client.instances.GetInstance(GetInstanceRequest(name=NAME))
    assert raised.value.metadata["endpoints"] == f"{CLOSED}, localhost:1"
    assert "connection refused" in raised.value.message
    assert asyncio.get_running_loop().time() - started < LIMITS.deadline_s


async def test_plain_text_goes_to_loopback_only() -> None:
    with pytest.raises(InvalidArgument, match="TLS is needed"):
        connect("10.0.0.1:7443")


async def test_both_sides_prove_who_they_are(tmp_path: Path) -> None:
    ours, theirs = init_ca(tmp_path / "ours"), init_ca(tmp_path / "theirs")
    controller = ours.issue(Role.CONTROLLER, "c1")
    get = GetInstanceRequest(name=NAME)
    async with scripted(controller, GetInstance=answers(Instance(name=NAME))) as script:
        async with connect(script.address, tls=ours.issue(Role.ADMIN, "alice"), limits=LIMITS) as client:
            assert (await client.instances.GetInstance(get)).name == NAME
        async with connect(script.address, tls=theirs.issue(Role.ADMIN, "alice"), limits=LIMITS) as client:
            with pytest.raises(Unavailable) as raised:
                await client.instances.GetInstance(get)
    assert raised.value.specific_reason == "TLS_REFUSED"
    impostor = ours.issue(Role.AGENT, "host-a", sans=["127.0.0.1"])
    async with scripted(impostor, GetInstance=answers(Instance(name=NAME))) as script:
        async with connect(script.address, tls=ours.issue(Role.ADMIN, "alice"), limits=LIMITS) as client:
            with pytest.raises(Unavailable):
                await client.instances.GetInstance(get)
        assert script.calls == []


async def test_lists_are_read_to_their_end() -> None:
    async def pages(request: Any, context: Any) -> ListInstancesResponse:
        number = int(request.page_token or 0)
        token = str(number + 1) if number < 2 else ""
        return ListInstancesResponse(instances=[Instance(name=f"i{number}")], next_page_token=token, revision=7)

    async with scripted(ListInstances=pages) as script, client_of(script) as client:
        listing = await client.list_instances("projects/default")
    assert [each.name for each in listing.items] == ["i0", "i1", "i2"]
    assert listing.revision == 7


def event(kind: ChangeKind, name: str = "", etag: str = "", revision: int = 0) -> WatchInstancesResponse:
    instance = Instance(name=name, etag=etag) if name else None
    return WatchInstancesResponse(type=f"WATCH_EVENT_TYPE_{kind}", instance=instance, revision=revision)


ADDED, MODIFIED, REMOVED, BOOKMARK = ChangeKind


async def seen_by(client: Client, count: int, *, revision: int = 0) -> list[tuple[ChangeKind, str, int]]:
    """The first changes of a watch."""
    seen: list[tuple[ChangeKind, str, int]] = []
    async with asyncio.timeout(10):
        async for change in client.watch_instances("projects/default", revision=revision):
            name = f"{change.resource.name}@{change.resource.etag}" if change.resource else ""
            seen.append((change.kind, name, change.revision))
            if len(seen) == count:
                break
    return seen


async def test_a_watch_goes_on_elsewhere_from_where_it_was() -> None:
    first = tells(
        event(ADDED, "a", "1"), event(BOOKMARK, revision=5), event(MODIFIED, "a", "6", 6), Draining("stopping")
    )
    async with (
        scripted(WatchInstances=first) as stopping,
        scripted(WatchInstances=tells(event(REMOVED, "a", revision=8))) as alive,
        client_of(stopping, alive) as client,
    ):
        seen = await seen_by(client, 4)
        assert [request.revision for request in alive.got("WatchInstances")] == [6]
    assert seen == [(ADDED, "a@1", 0), (BOOKMARK, "", 5), (MODIFIED, "a@6", 6), (REMOVED, "a@", 8)]


async def test_a_snapshot_that_broke_off_is_told_once() -> None:
    first = tells(event(ADDED, "a", "1"), event(ADDED, "b", "2"), event(ADDED, "c", "3"), Draining("stopping"))
    second = tells(event(ADDED, "a", "1"), event(ADDED, "c", "7"), event(ADDED, "d", "4"), event(BOOKMARK, revision=9))
    async with (
        scripted(WatchInstances=first) as stopping,
        scripted(WatchInstances=second) as alive,
        client_of(stopping, alive) as client,
    ):
        seen = await seen_by(client, 7)
    assert seen[3:] == [(MODIFIED, "c@7", 0), (ADDED, "d@4", 0), (REMOVED, "b@", 9), (BOOKMARK, "", 9)]


async def test_a_watch_finds_its_way_back_when_its_revision_is_gone() -> None:
    turns = iter(
        [
            tells(event(ADDED, "a", "1"), event(BOOKMARK, revision=5), Draining("stopping")),
            tells(Compacted(90)),
            tells(event(ADDED, "b", "80"), event(BOOKMARK, revision=95)),
        ]
    )

    def next_turn(request: Any, context: Any) -> Any:
        return next(turns)(request, context)

    async with scripted(WatchInstances=next_turn) as script, client_of(script) as client:
        seen = await seen_by(client, 5)
        assert [request.revision for request in script.got("WatchInstances")] == [0, 5, 0]
    assert seen[2:] == [(ADDED, "b@80", 0), (REMOVED, "a@", 95), (BOOKMARK, "", 95)]


async def test_a_watch_that_began_in_between_cannot_know_what_it_missed() -> None:
    async with scripted(WatchInstances=tells(Compacted(90))) as script, client_of(script) as client:
        with pytest.raises(Compacted):
            await seen_by(client, 1, revision=5)


def moment(*, done: bool = False, error: Exception | None = None) -> WatchOperationResponse:
    operation = Operation(name=OPERATION, done=done)
    if isinstance(error, NoNodeFits):
        operation.error.CopyFrom(status_of(error))
    return WatchOperationResponse(operation=operation)


async def test_waiting_outlives_the_controller_that_was_asked() -> None:
    async with (
        scripted(WatchOperation=tells(moment(), Draining("stopping"))) as stopping,
        scripted(WatchOperation=tells(moment(), moment(done=True))) as alive,
        client_of(stopping, alive) as client,
    ):
        updates: list[WatchOperationResponse] = []
        assert (await client.wait(OPERATION, on_update=updates.append)).done
        assert [update.operation.done for update in updates] == [False, False, True]


async def test_waiting_raises_what_the_operation_ended_with() -> None:
    failed = moment(done=True, error=NoNodeFits("no node fits"))
    async with scripted(WatchOperation=tells(moment(), failed)) as script, client_of(script) as client:
        with pytest.raises(NoNodeFits) as raised:
            await client.wait(OPERATION)
    assert raised.value.metadata["operation"] == OPERATION


async def test_waiting_has_a_bound() -> None:
    async def never_done(request: Any, context: Any) -> AsyncIterator[Any]:
        yield moment()
        await hangs(request, context)

    async with scripted(WatchOperation=never_done) as script, client_of(script) as client:
        with pytest.raises(DeadlineExceeded, match=OPERATION):
            await client.wait(OPERATION, timeout_s=0.3)


CONTENT = bytes(range(256)) * 8192  # 2 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def receives(then: Callable[[Any, bytes], Awaitable[Any]]) -> Handler:
    async def handle(requests: AsyncIterator[Any], context: Any) -> Any:
        spec, content = None, b""
        async for request in requests:
            if request.HasField("spec"):
                spec = request.spec
            content += request.chunk
        return await then(spec, content)

    return handle


async def upload(client: Client, path: Path, **more: Any) -> Image:
    return await client.upload_image(
        parent="projects/default", image_id="i", path=path, format=DiskFormat.DISK_FORMAT_RAW, **more
    )


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(CONTENT)
    return path


async def test_an_upload_arrives_whole_and_shows_how_far_it_is(disk: Path) -> None:
    async def keep(spec: Any, content: bytes) -> Image:
        assert (spec.sha256, spec.size_bytes, content) == (DIGEST, len(CONTENT), CONTENT)
        return Image(name=f"{spec.parent}/images/{spec.image_id}", sha256=spec.sha256)

    shown: list[tuple[str, int, int]] = []
    async with scripted(UploadImage=receives(keep)) as script, client_of(script) as client:
        image = await upload(client, disk, progress=lambda *each: shown.append(each))
    assert image.name == "projects/default/images/i"
    assert shown[-1] == ("uploading", len(CONTENT), len(CONTENT))
    assert {stage for stage, _, _ in shown} == {"checking", "uploading"}


async def test_an_upload_whose_answer_was_lost_is_not_sent_again(disk: Path) -> None:
    async def lose(spec: Any, content: bytes) -> Image:
        raise Draining("stopping")

    arrived = Image(name="projects/default/images/i", sha256=DIGEST)
    async with (
        scripted(UploadImage=receives(lose)) as stopping,
        scripted(GetImage=answers(arrived), UploadImage=receives(lose)) as alive,
        client_of(stopping, alive) as client,
    ):
        assert await upload(client, disk) == arrived
        assert alive.got("UploadImage") == []


async def test_an_upload_that_did_not_arrive_is_sent_again(disk: Path) -> None:
    ids: list[str] = []

    async def lose(spec: Any, content: bytes) -> Image:
        ids.append(spec.request_id)
        raise Draining("stopping")

    async def keep(spec: Any, content: bytes) -> Image:
        ids.append(spec.request_id)
        return Image(name="projects/default/images/i", size_bytes=len(content))

    missing = raises(NotFound("not there"))
    async with (
        scripted(UploadImage=receives(lose)) as stopping,
        scripted(GetImage=missing, UploadImage=receives(keep)) as alive,
        client_of(stopping, alive) as client,
    ):
        assert (await upload(client, disk)).size_bytes == len(CONTENT)
    assert len(ids) == 2
    assert len(set(ids)) == 1


async def test_an_image_that_is_refused_midway_says_so(disk: Path) -> None:
    async def refuse(requests: AsyncIterator[Any], context: Any) -> Any:
        raise ImageRefused("it has a backing file")

    async with scripted(UploadImage=refuse) as script, client_of(script) as client:
        with pytest.raises(ImageRefused, match="backing file"):
            await upload(client, disk)


def files_in(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def part(begin: int, end: int, *, first: bool = False) -> DownloadImageResponse:
    size, digest = (len(CONTENT), DIGEST) if first else (0, "")
    return DownloadImageResponse(chunk=CONTENT[begin:end], offset=begin, size_bytes=size, sha256=digest)


async def test_a_download_is_taken_up_where_it_broke_off(tmp_path: Path) -> None:
    middle, target = 700_000, tmp_path / "out.raw"
    async with (
        scripted(DownloadImage=tells(part(0, middle, first=True), Draining("stopping"))) as stopping,
        scripted(DownloadImage=tells(part(middle, len(CONTENT), first=True))) as alive,
        client_of(stopping, alive) as client,
    ):
        await client.download_image("projects/default/images/i", target)
        assert [request.offset for request in alive.got("DownloadImage")] == [middle]
    assert target.read_bytes() == CONTENT
    assert files_in(tmp_path) == [target]


async def test_a_damaged_download_leaves_nothing_behind(tmp_path: Path) -> None:
    damaged = part(0, len(CONTENT), first=True)
    damaged.chunk = b"x" + damaged.chunk[1:]
    async with scripted(DownloadImage=tells(damaged)) as script, client_of(script) as client:
        with pytest.raises(DataLoss, match="arrived damaged"):
            await client.download_image("projects/default/images/i", tmp_path / "out.raw")
    assert files_in(tmp_path) == []


async def test_calls_at_once_do_not_chase_each_other_round_the_endpoints() -> None:
    async with AsyncExitStack() as stack:
        alive = await stack.enter_async_context(scripted(GetImage=answers(Image(name="i"))))
        client = await stack.enter_async_context(client_of(CLOSED, alive))
        images = await asyncio.gather(*(client.images.GetImage(GetImageRequest(name="i")) for _ in range(20)))
        assert {image.name for image in images} == {"i"}
        assert client.endpoints.current == alive.address
