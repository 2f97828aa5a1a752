"""Migration between simulated hosts of different processes, over the sockets that real migrations use.

The control socket stands for libvirtd's: lines of JSON, `prepare` then `run`, each answered by one line. The memory
socket stands for QEMU's: as many bytes as the guest has memory. Closing the control connection before `run` abandons
the guest that was arriving.
"""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leeward.agent.types import DiskFormat, GuestSpec, GuestState, Nic
from leeward.errors import HypervisorError
from leeward_agent.hypervisors.simulated.guest import SimulatedGuest
from leeward_agent.hypervisors.simulated.host import SimulatedHost
from leeward_agent.hypervisors.simulated.migration import OutcomeUnknown
from leeward_agent.ports import MigrationTransport

ANSWER_TIMEOUT_S = 10.0
_CHUNK_BYTES = 1024 * 1024
_ZEROS = bytes(_CHUNK_BYTES)

Message = dict[str, Any]


class RemoteDestination:
    """A host in another process, reached through a `MigrationTransport`."""

    def __init__(self, transport: MigrationTransport) -> None:
        self._transport = transport
        self._control: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._memory: asyncio.StreamWriter | None = None
        self._sent_bytes = 0

    async def prepare(self, guest: SimulatedGuest, spec: GuestSpec) -> None:
        """Make the guest known there, not executing."""
        self._control = await _connect(self._transport.libvirt_socket)
        await self._ask(
            {
                "prepare": {
                    "spec": asdict(spec),
                    "disk": str(guest.disk),
                    "console_log": str(guest.console_log),
                    "boots": guest.boots,
                    "memory_socket": str(self._transport.destination_memory_socket),
                }
            }
        )
        _, self._memory = await _connect(self._transport.memory_socket)

    async def receive(self, size_bytes: int) -> None:
        """Send this much memory."""
        if self._memory is None:
            raise HypervisorError("memory is sent before the destination is prepared")
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                for offset in range(0, size_bytes, _CHUNK_BYTES):
                    self._memory.write(_ZEROS[: size_bytes - offset])
                    await self._memory.drain()
        except (OSError, TimeoutError) as error:
            raise HypervisorError(f"the memory stream broke: {error!r}") from error
        self._sent_bytes += size_bytes

    async def switch(self, *, paused: bool) -> None:
        """Let it execute there."""
        try:
            await self._ask({"run": {"received_bytes": self._sent_bytes, "paused": paused}})
        except ConnectionLost as error:
            raise OutcomeUnknown(f"the destination may run the guest: {error.message}") from error

    def abandon(self) -> None:
        """Close both connections."""
        for writer in (self._memory, self._control[1] if self._control is not None else None):
            if writer is not None:
                writer.close()

    async def _ask(self, message: Message) -> None:
        if self._control is None:
            raise HypervisorError("the destination is not connected")
        reader, writer = self._control
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                writer.write(json.dumps(message).encode() + b"\n")
                await writer.drain()
                answer = await reader.readline()
        except (OSError, TimeoutError) as error:
            raise ConnectionLost(f"the destination does not answer: {error!r}") from error
        if not answer.endswith(b"\n"):
            raise ConnectionLost("the destination closed the connection")
        error_text = json.loads(answer).get("error", "")
        if error_text:
            raise HypervisorError(f"the destination refused: {error_text}")


class ConnectionLost(HypervisorError):
    """The destination did not answer: it may have acted."""


class ControlServer:
    """Accepts migrations to one host."""

    def __init__(self, host: SimulatedHost, path: Path) -> None:
        self._host = host
        self._path = path
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises HypervisorError when the path cannot be used."""
        self._server = await _listen(self._path, self._connected)

    async def close(self) -> None:
        """Stop listening; what is arriving is abandoned."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrival = _Arrival(self._host)
        try:
            while line := await reader.readline():
                try:
                    await arrival.take(json.loads(line))
                    answer: Message = {}
                except HypervisorError as error:
                    answer = {"error": error.message}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except OSError:
            # The source, or an agent between, went away: the same as a closed connection.
            return
        finally:
            arrival.end()
            writer.close()


class _Arrival:
    """One guest that arrives, or has arrived."""

    def __init__(self, host: SimulatedHost) -> None:
        self._host = host
        self._guest: SimulatedGuest | None = None
        self._server: asyncio.Server | None = None
        self._socket: Path | None = None
        self._memory: list[asyncio.StreamWriter] = []
        self._received_bytes = 0
        self._received = asyncio.Condition()

    async def take(self, message: Message) -> None:
        """Do what a message asks. Raises HypervisorError."""
        if "prepare" in message:
            await self._prepare(message["prepare"])
        else:
            await self._run(**message["run"])

    def end(self) -> None:
        """The connection is closed: forget a guest that was not switched."""
        if self._server is not None:
            self._server.close()
        for writer in self._memory:
            writer.close()
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
        if self._guest is not None and self._guest.incoming and self._host.powered:
            self._host.remove(self._guest)

    async def _prepare(self, message: Message) -> None:
        guest = SimulatedGuest(
            spec=_spec(message["spec"]),
            disk=Path(message["disk"]),
            console_log=Path(message["console_log"]),
            state=GuestState.PAUSED,
            boots=int(message["boots"]),
            booted_s=self._host.clock.monotonic_s(),
            incoming=True,
            holds_disk=False,
        )
        self._socket = Path(message["memory_socket"])
        self._server = await _listen(self._socket, self._memory_connected)
        self._host.receive(guest)
        self._guest = guest

    async def _run(self, *, received_bytes: int, paused: bool) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S), self._received:
                await self._received.wait_for(lambda: self._received_bytes >= received_bytes)
        except TimeoutError as error:
            raise HypervisorError(f"only {self._received_bytes} of {received_bytes} bytes arrived") from error
        if self._guest is None or not self._guest.active or not self._host.powered:
            raise HypervisorError("the arriving guest is gone")
        self._host.run(self._guest, paused=paused)

    async def _memory_connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._memory.append(writer)
        try:
            while chunk := await reader.read(_CHUNK_BYTES):
                async with self._received:
                    self._received_bytes += len(chunk)
                    self._received.notify_all()
        except OSError:
            # What arrived is counted; `run` fails if it is not all.
            return
        finally:
            writer.close()


def _spec(fields: Message) -> GuestSpec:
    nics = tuple(Nic(**nic) for nic in fields["nics"])
    return GuestSpec(**{**fields, "nics": nics, "image_format": DiskFormat(fields["image_format"])})


async def _connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await asyncio.open_unix_connection(str(path))
    except (OSError, TimeoutError) as error:
        raise HypervisorError(f"cannot connect to {path}: {error!r}") from error


async def _listen(path: Path, connected: Any) -> asyncio.Server:
    try:
        return await asyncio.start_unix_server(connected, str(path))
    except OSError as error:
        raise HypervisorError(f"cannot listen on {path}: {error!r}") from error
