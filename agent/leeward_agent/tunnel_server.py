"""The destination's end of a migration tunnel."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import structlog

from leeward.agent.v1 import agent_pb2 as pb
from leeward.errors import InvalidArgument, LeewardError, PermissionDenied
from leeward.identity import Principal, Role
from leeward_agent.splice import connect_unix, splice
from leeward_agent.storage.names import checked_uid

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_log = structlog.get_logger(__name__)

_CONNECT_TIMEOUT_S = 5.0

CheckCaller = Callable[[str], None]
"""Given the node that a tunnel says it comes from; raises PermissionDenied when the caller is another."""


def memory_socket(directory: Path, uid: str) -> Path:
    """Where QEMU awaits a guest's memory on the destination, and where the source's QEMU sends it: the same path.

    libvirt gives one migration URI to both ends, so all hosts must use the same directory.
    """
    return directory / f"{checked_uid(uid)}.memory"


def disk_socket(directory: Path, uid: str) -> Path:
    """Where QEMU takes a guest's disks on the destination, and where the source's QEMU sends them, by NBD."""
    return directory / f"{checked_uid(uid)}.disk"


def caller_is_agent_of(principal: Principal, source_node: str) -> None:
    """Raises PermissionDenied unless the principal is the agent of `source_node`."""
    if principal.role is not Role.AGENT or principal.name != source_node:
        raise PermissionDenied(f"{principal} may not open a tunnel for {source_node}")


class TunnelServer:
    """Leads a tunnel to this host's own libvirt, or to the QEMU that awaits the guest and its disks.

    The caller names a guest and never a path. `admit` raises PermissionDenied or FailedPrecondition to refuse it.
    """

    def __init__(
        self,
        *,
        libvirt_socket: Path,
        socket_directory: Path,
        admit: Callable[[pb.TunnelHeader], Awaitable[None]],
        check_caller: CheckCaller,
    ) -> None:
        self._libvirt_socket = libvirt_socket
        self._socket_directory = socket_directory
        self._admit_header = admit
        self._check_caller = check_caller

    async def serve(self, frames: AsyncIterator[pb.TunnelFrame], context: _Context) -> None:
        """One tunnelled connection, until both its ends are done. Raises PermissionDenied, Unavailable."""
        first = await anext(frames, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgument.field("header", "must be the first frame")
        header = first.header
        path = await self._admit(header)
        connection = await connect_unix(path, timeout_s=_CONNECT_TIMEOUT_S)
        with contextlib.closing(connection):
            await context.write(pb.TunnelFrame())
            log = _log.bind(uid=header.uid, source=header.source_node, target=pb.TunnelTarget.Name(header.target))
            try:
                traffic = await splice(connection, send=context.write, frames=frames)
            except LeewardError as error:
                log.warning("tunnel broke off", error=error.message)
                raise
            log.info(
                "tunnel ended",
                received_bytes=traffic.to_socket_bytes,
                sent_bytes=traffic.from_socket_bytes,
            )

    async def _admit(self, header: pb.TunnelHeader) -> Path:
        """The socket that the tunnel leads to."""
        uid = checked_uid(header.uid)
        self._check_caller(header.source_node)
        await self._admit_header(header)
        match header.target:
            case pb.TUNNEL_TARGET_LIBVIRT:
                return self._libvirt_socket
            case pb.TUNNEL_TARGET_MEMORY:
                return memory_socket(self._socket_directory, uid)
            case pb.TUNNEL_TARGET_DISK:
                return disk_socket(self._socket_directory, uid)
            case _:
                raise InvalidArgument.field("header.target", "is not one that this version knows")
