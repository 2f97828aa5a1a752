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
from leeward_agent.storage.port import RunEpochRecord

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


def caller_is_agent_of(principal: Principal, source_node: str) -> None:
    """Raises PermissionDenied unless the principal is the agent of `source_node`."""
    if principal.role is not Role.AGENT or principal.name != source_node:
        raise PermissionDenied(f"{principal} may not open a tunnel for {source_node}")


class TunnelServer:
    """Leads a tunnel to this host's own libvirt, or to the QEMU that awaits the guest.

    The caller names a guest and never a path. It is let through only when the disk's run epoch record, read from the
    pool, says that the guest is the calling node's to give.
    """

    def __init__(
        self,
        *,
        libvirt_socket: Path,
        socket_directory: Path,
        read_run_epoch: Callable[[str], Awaitable[RunEpochRecord | None]],
        check_caller: CheckCaller,
    ) -> None:
        self._libvirt_socket = libvirt_socket
        self._socket_directory = socket_directory
        self._read_run_epoch = read_run_epoch
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
        record = await self._read_run_epoch(uid)
        if record is None or record.node != header.source_node:
            holder = "nobody" if record is None else record.node
            raise PermissionDenied(f"guest {uid} is not {header.source_node}'s to migrate: {holder} may run it")
        match header.target:
            case pb.TUNNEL_TARGET_LIBVIRT:
                return self._libvirt_socket
            case pb.TUNNEL_TARGET_MEMORY:
                return memory_socket(self._socket_directory, uid)
            case _:
                raise InvalidArgument.field("header.target", "is not one that this version knows")
