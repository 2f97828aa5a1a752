"""Migration between simulated hosts of different processes, over the sockets that real migrations use.

The control socket stands for libvirtd's: lines of JSON, `prepare` then `run`, and after a post-copy `finish`, each
answered by one line; `mend` instead of `prepare` goes on with a post-copy that broke. The memory and disk sockets stand
for QEMU's: as many bytes as the guest has memory, and has written. Closing the control connection before `run` abandons
the guest that was arriving.
"""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leeward.agent.types import GuestSpec, GuestState
from leeward.errors import HypervisorError
from leeward_agent.hypervisors.simulated.destination import OutcomeUnknown, Switch, let_run, moved
from leeward_agent.hypervisors.simulated.files import DiskRecord
from leeward_agent.hypervisors.simulated.guest import SimulatedGuest
from leeward_agent.hypervisors.simulated.host import SimulatedHost
from leeward_agent.hypervisors.simulated.json_values import decode_files, decode_spec, encode_files, encode_spec
from leeward_agent.ports import FolderMove, MigrationTransport

ANSWER_TIMEOUT_S = 10.0
_CHUNK_BYTES = 1024 * 1024
_ZEROS = bytes(_CHUNK_BYTES)

Message = dict[str, Any]


class RemoteDestination:
    """A host in another process, reached through a `MigrationTransport`."""

    def __init__(self, transport: MigrationTransport, folders: FolderMove) -> None:
        self._transport = transport
        self._folders = folders
        self._control: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._memory: asyncio.StreamWriter | None = None
        self._disk: asyncio.StreamWriter | None = None
        self._memory_bytes = 0
        self._disk_bytes = 0

    async def prepare(self, guest: SimulatedGuest, spec: GuestSpec) -> None:
        """Make the guest known there, not executing."""
        await self._open(
            {
                "prepare": {
                    "spec": encode_spec(spec),
                    "files": encode_files(moved(guest.disks, self._folders), guest.console),
                    "boots": guest.boots,
                    "memory_socket": str(self._transport.destination_memory_socket),
                    "disk_socket": str(self._transport.destination_disk_socket),
                }
            }
        )

    async def receive(self, size_bytes: int) -> None:
        """Send this much memory."""
        if self._memory is None:
            raise HypervisorError("memory is sent before the destination is prepared")
        await _send(self._memory, size_bytes)
        self._memory_bytes += size_bytes

    async def receive_disk(self, size_bytes: int) -> None:
        """Send this much of the disks."""
        if self._disk is None:
            _, self._disk = await _connect(self._transport.disk_socket)
        await _send(self._disk, size_bytes)
        self._disk_bytes += size_bytes

    async def switch(self, how: Switch) -> None:
        """Let it execute there."""
        message = {"memory_bytes": self._memory_bytes, "disk_bytes": self._disk_bytes, "how": asdict(how)}
        try:
            await self._ask({"run": message})
        except ConnectionLost as error:
            raise OutcomeUnknown(f"the destination may run the guest: {error.message}") from error

    async def finish(self) -> None:
        """All its memory is there."""
        await self._ask({"finish": {"memory_bytes": self._memory_bytes}})

    async def mend(self, uid: str) -> None:
        """Find the half of it that is there."""
        await self._open({"mend": {"uid": uid, "memory_socket": str(self._transport.destination_memory_socket)}})

    async def _open(self, message: Message) -> None:
        self._control = await _connect(self._transport.libvirt_socket)
        await self._ask(message)
        _, self._memory = await _connect(self._transport.memory_socket)

    def abandon(self) -> None:
        """Close all connections."""
        for writer in (self._memory, self._disk, self._control[1] if self._control is not None else None):
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


class _Stream:
    """A socket that counts what arrives on it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._received_bytes = 0
        self._received = asyncio.Condition()

    async def listen(self) -> None:
        """Accept connections. Raises HypervisorError."""
        self._server = await _listen(self._path, self._connected)

    def close(self) -> None:
        """Let go of everything."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
        for writer in self._writers:
            writer.close()

    async def wait_for(self, size_bytes: int) -> None:
        """Until so much has arrived. Raises HypervisorError."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S), self._received:
                await self._received.wait_for(lambda: self._received_bytes >= size_bytes)
        except TimeoutError as error:
            raise HypervisorError(f"only {self._received_bytes} of {size_bytes} bytes arrived") from error

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            while chunk := await reader.read(_CHUNK_BYTES):
                async with self._received:
                    self._received_bytes += len(chunk)
                    self._received.notify_all()
        except OSError:
            # What arrived is counted; the guest is let run only if that is all.
            return
        finally:
            writer.close()


class _Arrival:
    """One guest that arrives, or has arrived."""

    def __init__(self, host: SimulatedHost) -> None:
        self._host = host
        self._guest: SimulatedGuest | None = None
        self._memory: _Stream | None = None
        self._disk: _Stream | None = None

    async def take(self, message: Message) -> None:
        """Do what a message asks. Raises HypervisorError."""
        ((kind, content),) = message.items()
        match kind:
            case "prepare":
                await self._prepare(content)
            case "run":
                await self._run(content)
            case "finish":
                await self._finish(content)
            case "mend":
                await self._mend(content)
            case _:
                raise HypervisorError(f"{kind!r} is not a message of this version")

    def end(self) -> None:
        """The connection is closed: forget a guest that was not switched."""
        for stream in (self._memory, self._disk):
            if stream is not None:
                stream.close()
        if self._guest is not None and self._guest.incoming and self._host.powered:
            self._host.remove(self._guest)

    async def _prepare(self, message: Message) -> None:
        disks, console = decode_files(message["files"])
        guest = SimulatedGuest(
            spec=decode_spec(message["spec"]),
            disks=disks,
            console=console,
            state=GuestState.PAUSED,
            boots=int(message["boots"]),
            booted_s=self._host.clock.monotonic_s(),
            incoming=True,
            holds_disk=False,
        )
        self._memory = await self._listen(message["memory_socket"])
        self._disk = await self._listen(message["disk_socket"])
        self._host.receive(guest)
        self._guest = guest

    async def _run(self, message: Message) -> None:
        if self._memory is None or self._disk is None:
            raise HypervisorError("no guest is arriving")
        await self._memory.wait_for(int(message["memory_bytes"]))
        await self._disk.wait_for(int(message["disk_bytes"]))
        how = message["how"]
        record = DiskRecord(**how["record"]) if how["record"] is not None else None
        let_run(self._host, self._arrived(), Switch(**{**how, "record": record}))

    async def _finish(self, message: Message) -> None:
        guest = self._arrived()
        if self._memory is not None:
            await self._memory.wait_for(int(message["memory_bytes"]))
        guest.memory_follows = False
        self._host.tell(guest.status())

    async def _mend(self, message: Message) -> None:
        guest = self._host.guests.get(message["uid"])
        if guest is None or not guest.active or not guest.memory_follows:
            raise HypervisorError(f"host {self._host.node} does not hold the other half of the guest")
        self._memory = await self._listen(message["memory_socket"])
        self._guest = guest

    async def _listen(self, path: str) -> _Stream:
        stream = _Stream(Path(path))
        await stream.listen()
        return stream

    def _arrived(self) -> SimulatedGuest:
        if self._guest is None or not self._guest.active or not self._host.powered:
            raise HypervisorError("the arriving guest is gone")
        return self._guest


async def _send(to: asyncio.StreamWriter, size_bytes: int) -> None:
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            for offset in range(0, size_bytes, _CHUNK_BYTES):
                to.write(_ZEROS[: size_bytes - offset])
                await to.drain()
    except (OSError, TimeoutError) as error:
        raise HypervisorError(f"the stream to the destination broke: {error!r}") from error


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
