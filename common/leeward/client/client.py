"""The client itself: one stub a service, and the calls that take more than one request."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.longrunning.operations_pb2 import Operation

from leeward.client import consoles, images
from leeward.client.endpoints import Endpoints
from leeward.client.failover import FailoverChannel, Limits
from leeward.client.operations import error_of
from leeward.client.watching import Change, ChangeKind, Ledger, resumed, watch
from leeward.clock import Clock, Ids, RandomIds, SystemClock
from leeward.errors import DeadlineExceeded, InternalError
from leeward.v1 import (
    backup_policy_service_pb2,
    failover_service_pb2,
    flavor_service_pb2,
    group_service_pb2,
    image_service_pb2,
    instance_service_pb2,
    node_service_pb2,
    operation_service_pb2,
    project_service_pb2,
)
from leeward.v1.admin_service_pb2_grpc import AdminServiceStub
from leeward.v1.backup_policy_pb2 import BackupPolicy
from leeward.v1.backup_policy_service_pb2_grpc import BackupPolicyServiceStub
from leeward.v1.failover_pb2 import Failover
from leeward.v1.failover_service_pb2_grpc import FailoverServiceStub
from leeward.v1.flavor_pb2 import Flavor
from leeward.v1.flavor_service_pb2_grpc import FlavorServiceStub
from leeward.v1.group_pb2 import Group
from leeward.v1.group_service_pb2_grpc import GroupServiceStub
from leeward.v1.image_pb2 import DiskFormat, Image
from leeward.v1.image_service_pb2_grpc import ImageServiceStub
from leeward.v1.instance_pb2 import Instance, InstanceEvent
from leeward.v1.instance_service_pb2_grpc import InstanceServiceStub
from leeward.v1.node_pb2 import Node
from leeward.v1.node_service_pb2_grpc import NodeServiceStub
from leeward.v1.operation_service_pb2_grpc import OperationServiceStub
from leeward.v1.project_pb2 import Project
from leeward.v1.project_service_pb2_grpc import ProjectServiceStub
from leeward.v1.watch_pb2 import WatchEventType

if TYPE_CHECKING:
    from leeward.tls import TlsMaterial

    # These exist for type checkers only.
    from leeward.v1.admin_service_pb2_grpc import AdminServiceAsyncStub
    from leeward.v1.backup_policy_service_pb2_grpc import BackupPolicyServiceAsyncStub
    from leeward.v1.failover_service_pb2_grpc import FailoverServiceAsyncStub
    from leeward.v1.flavor_service_pb2_grpc import FlavorServiceAsyncStub
    from leeward.v1.group_service_pb2_grpc import GroupServiceAsyncStub
    from leeward.v1.image_service_pb2_grpc import ImageServiceAsyncStub
    from leeward.v1.instance_service_pb2_grpc import InstanceServiceAsyncStub
    from leeward.v1.node_service_pb2_grpc import NodeServiceAsyncStub
    from leeward.v1.operation_service_pb2_grpc import OperationServiceAsyncStub
    from leeward.v1.project_service_pb2_grpc import ProjectServiceAsyncStub

ItemT = TypeVar("ItemT")

_PAGE_SIZE = 500
_KINDS = {
    WatchEventType.WATCH_EVENT_TYPE_ADDED: ChangeKind.ADDED,
    WatchEventType.WATCH_EVENT_TYPE_MODIFIED: ChangeKind.MODIFIED,
    WatchEventType.WATCH_EVENT_TYPE_REMOVED: ChangeKind.REMOVED,
    WatchEventType.WATCH_EVENT_TYPE_BOOKMARK: ChangeKind.BOOKMARK,
}


@dataclass(frozen=True, slots=True)
class Listing(Generic[ItemT]):
    """All pages of a list, as of one `revision`; a watch from there misses nothing."""

    items: tuple[ItemT, ...]
    revision: int


class _ListRequest(Protocol):
    page_token: str


class Client:
    """The public API over one or several controllers. Make one with `connect`; leaving the context closes it.

    The stubs (`instances`, `nodes`, ...) have every method of their service. Unary calls fail over between endpoints
    and take `timeout` in seconds; changing calls are given a `request_id` when they have none, so that repeating them
    is safe. Errors are those of `leeward.errors`: Unavailable names the endpoints that were tried.
    """

    def __init__(self, endpoints: Endpoints, *, limits: Limits, clock: Clock, ids: Ids) -> None:
        self.endpoints = endpoints
        self._channel = FailoverChannel(endpoints, limits=limits, clock=clock, ids=ids)
        channel = self._channel.for_stubs()
        self.instances: InstanceServiceAsyncStub = InstanceServiceStub(channel)
        self.nodes: NodeServiceAsyncStub = NodeServiceStub(channel)
        self.failovers: FailoverServiceAsyncStub = FailoverServiceStub(channel)
        self.images: ImageServiceAsyncStub = ImageServiceStub(channel)
        self.flavors: FlavorServiceAsyncStub = FlavorServiceStub(channel)
        self.groups: GroupServiceAsyncStub = GroupServiceStub(channel)
        self.projects: ProjectServiceAsyncStub = ProjectServiceStub(channel)
        self.backup_policies: BackupPolicyServiceAsyncStub = BackupPolicyServiceStub(channel)
        self.admin: AdminServiceAsyncStub = AdminServiceStub(channel)
        # googleapis-common-protos ships no types for these.
        self.operations: Any = operations_pb2_grpc.OperationsStub(channel)
        self.operation_watches: OperationServiceAsyncStub = OperationServiceStub(channel)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, with the calls that still run on them."""
        await self.endpoints.close()

    async def list_instances(self, parent: str, *, filter: str = "") -> Listing[Instance]:
        """The instances of `projects/{project}`, or of `projects/-` for all, by name."""
        request = instance_service_pb2.ListInstancesRequest(parent=parent, filter=filter, page_size=_PAGE_SIZE)
        return await _all_pages(self.instances.ListInstances, request, lambda page: page.instances)

    async def list_nodes(self, *, filter: str = "") -> Listing[Node]:
        """All nodes, by name."""
        request = node_service_pb2.ListNodesRequest(filter=filter, page_size=_PAGE_SIZE)
        return await _all_pages(self.nodes.ListNodes, request, lambda page: page.nodes)

    async def list_failovers(self, *, filter: str = "") -> Listing[Failover]:
        """The failovers that are kept, oldest first, without their instances."""
        request = failover_service_pb2.ListFailoversRequest(filter=filter, page_size=_PAGE_SIZE)
        return await _all_pages(self.failovers.ListFailovers, request, lambda page: page.failovers)

    async def list_images(self, parent: str, *, filter: str = "") -> Listing[Image]:
        """The images of `projects/{project}`, or of `projects/-` for all, by name."""
        request = image_service_pb2.ListImagesRequest(parent=parent, filter=filter, page_size=_PAGE_SIZE)
        return await _all_pages(self.images.ListImages, request, lambda page: page.images)

    async def list_flavors(self) -> Listing[Flavor]:
        """All flavors, by name."""
        request = flavor_service_pb2.ListFlavorsRequest(page_size=_PAGE_SIZE)
        return await _all_pages(self.flavors.ListFlavors, request, lambda page: page.flavors)

    async def list_backup_policies(self, parent: str) -> Listing[BackupPolicy]:
        """The backup policies of `projects/{project}`, or of `projects/-` for all, by name."""
        request = backup_policy_service_pb2.ListBackupPoliciesRequest(parent=parent, page_size=_PAGE_SIZE)
        return await _all_pages(self.backup_policies.ListBackupPolicies, request, lambda page: page.backup_policies)

    async def list_groups(self, parent: str) -> Listing[Group]:
        """The groups of `projects/{project}`, or of `projects/-` for all, by name."""
        request = group_service_pb2.ListGroupsRequest(parent=parent, page_size=_PAGE_SIZE)
        return await _all_pages(self.groups.ListGroups, request, lambda page: page.groups)

    async def list_projects(self) -> Listing[Project]:
        """The projects that have limits, by name."""
        request = project_service_pb2.ListProjectsRequest(page_size=_PAGE_SIZE)
        return await _all_pages(self.projects.ListProjects, request, lambda page: page.projects)

    async def list_operations(self, *, filter: str = "") -> tuple[Operation, ...]:
        """All operations that are remembered."""
        request = operations_pb2.ListOperationsRequest(name="operations", filter=filter, page_size=_PAGE_SIZE)
        return (await _all_pages(self.operations.ListOperations, request, lambda page: page.operations)).items

    async def list_instance_events(self, name: str) -> tuple[InstanceEvent, ...]:
        """What was done to an instance, oldest first."""
        request = instance_service_pb2.ListInstanceEventsRequest(parent=name, page_size=_PAGE_SIZE)
        return (await _all_pages(self.instances.ListInstanceEvents, request, lambda page: page.events)).items

    async def watch_instances(self, parent: str, *, revision: int = 0) -> AsyncGenerator[Change[Instance], None]:
        """Every change of a project's instances from `revision` on, none missed and none twice; endless.

        From 0 it begins with those there are, then a BOOKMARK. Resumes at another endpoint when one fails. Raises
        Compacted when another revision to begin with is gone, Unavailable when no endpoint answers for long.
        """

        async def open_at(revision: int) -> AsyncGenerator[Change[Instance], None]:
            request = instance_service_pb2.WatchInstancesRequest(parent=parent, revision=revision)
            async for message in self.instances.WatchInstances(request):
                yield _change(message.type, message.instance, message.revision)

        changes = watch(
            open_at,
            Ledger(lambda name: Instance(name=name)),
            revision=revision,
            endpoints=self.endpoints,
            rounds=self._stream_rounds(),
        )
        async with aclosing(changes):
            async for change in changes:
                yield change

    async def watch_nodes(self, *, revision: int = 0) -> AsyncGenerator[Change[Node], None]:
        """Every change of what the controllers hold of nodes; as `watch_instances`."""

        async def open_at(revision: int) -> AsyncGenerator[Change[Node], None]:
            async for message in self.nodes.WatchNodes(node_service_pb2.WatchNodesRequest(revision=revision)):
                yield _change(message.type, message.node, message.revision)

        changes = watch(
            open_at,
            Ledger(lambda name: Node(name=name)),
            revision=revision,
            endpoints=self.endpoints,
            rounds=self._stream_rounds(),
        )
        async with aclosing(changes):
            async for change in changes:
                yield change

    async def watch_operation(self, name: str) -> AsyncGenerator[operation_service_pb2.WatchOperationResponse, None]:
        """An operation now and at each change, until it is done; resumes at another endpoint when one fails."""
        request = operation_service_pb2.WatchOperationRequest(name=name)

        def open_anew() -> AsyncGenerator[operation_service_pb2.WatchOperationResponse, None]:
            # The stub is over a channel whose streams are asynchronous generators.
            stream: Any = self.operation_watches.WatchOperation(request)
            generator: AsyncGenerator[operation_service_pb2.WatchOperationResponse, None] = stream
            return generator

        updates = resumed(open_anew, endpoints=self.endpoints, rounds=self._stream_rounds())
        async with aclosing(updates):
            async for update in updates:
                yield update
                if update.operation.done:
                    return

    async def wait(
        self,
        operation: Operation | str,
        *,
        timeout_s: float | None = None,
        on_update: Callable[[operation_service_pb2.WatchOperationResponse], None] | None = None,
    ) -> Operation:
        """The operation once it is done. Raises the error it ended with, whose metadata names it.

        `on_update` is told each moment. After `timeout_s` seconds raises DeadlineExceeded; the operation goes on.
        """
        name = operation if isinstance(operation, str) else operation.name
        try:
            async with asyncio.timeout(timeout_s):
                return await self._finished(name, on_update)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"{name} is still running after {timeout_s:g} s", metadata={"operation": name}
            ) from error

    async def attach_console(
        self, name: str, input: AsyncIterator[bytes], *, take_over: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """An instance's serial console: what its guest writes from now on, first an empty piece when it is attached.

        `input` goes to the guest; its end does not end the console, the guest's does. One at a time: raises
        FailedPrecondition (reason CONSOLE_IN_USE) unless `take_over`, which ends the other.
        """
        attached = consoles.attach(self._channel, self.instances, name, input, take_over=take_over)
        async with aclosing(attached) as pieces:
            async for piece in pieces:
                yield piece

    async def upload_image(
        self,
        *,
        parent: str,
        image_id: str,
        path: Path,
        format: "DiskFormat.ValueType",
        properties: Mapping[str, str] | None = None,
        pool: str = "",
        validate_only: bool = False,
        progress: images.Progress | None = None,
    ) -> Image:
        """Upload the file at `path`; it is read twice, first for its digest.

        Raises NotFound or FailedPrecondition when it cannot be read, ImageRefused when the server does not want it.
        """
        sha256, size_bytes = await images.digest_file(path, progress)
        spec = image_service_pb2.UploadImageSpec(
            parent=parent,
            image_id=image_id,
            format=format,
            sha256=sha256,
            size_bytes=size_bytes,
            properties=properties or {},
            pool=pool,
            request_id=self._channel.ids.new(),
            validate_only=validate_only,
        )
        return await images.upload(self._channel, self.images, spec, path, progress)

    async def download_image(self, name: str, path: Path, *, progress: images.Progress | None = None) -> None:
        """Write an image's file to `path`, whole and checked, or not at all."""
        await images.download(self._channel, self.images, name, path, progress)

    async def _finished(
        self, name: str, on_update: Callable[[operation_service_pb2.WatchOperationResponse], None] | None
    ) -> Operation:
        async with aclosing(self.watch_operation(name)) as updates:
            async for update in updates:
                if on_update:
                    on_update(update)
                if update.operation.done:
                    failure = error_of(update.operation)
                    if failure is not None:
                        raise failure
                    return update.operation
        raise InternalError(f"the watch of {name} ended before the operation")

    def _stream_rounds(self) -> Any:
        return self._channel.rounds(self._channel.limits.stream_patience_s)


def connect(
    endpoints: str | Sequence[str],
    *,
    tls: "TlsMaterial | None" = None,
    limits: Limits | None = None,
    clock: Clock | None = None,
    ids: Ids | None = None,
) -> Client:
    """A client of the controllers at `endpoints`, each `host:port`; it connects at the first call.

    Without `tls` it is plain text, to loopback only. Raises InvalidArgument for an endpoint that cannot be.
    """
    addresses = [endpoints] if isinstance(endpoints, str) else endpoints
    return Client(
        Endpoints(addresses, tls=tls),
        limits=limits or Limits(),
        clock=clock or SystemClock(),
        ids=ids or RandomIds(),
    )


async def _all_pages(
    method: Callable[..., Awaitable[Any]], request: _ListRequest, items: Callable[[Any], Sequence[ItemT]]
) -> Listing[ItemT]:
    found: list[ItemT] = []
    while True:
        page = await method(request)
        found.extend(items(page))
        if not page.next_page_token:
            return Listing(tuple(found), int(getattr(page, "revision", 0)))
        request.page_token = page.next_page_token


def _change(kind: "WatchEventType.ValueType", resource: Any, revision: int) -> Change[Any]:
    """The change that a message of a watch tells."""
    known = _KINDS.get(kind, ChangeKind.BOOKMARK)
    return Change(known, None if known is ChangeKind.BOOKMARK else resource, revision)
