"""Real clusters for tests of the public API: made once, lent to one test after the other, tidied in between."""

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.longrunning.operations_pb2 import Operation
from google.protobuf.duration_pb2 import Duration

from leeward.client import Client, metadata_of
from leeward.errors import AlreadyExists, LeewardError, NotFound
from leeward.v1 import flavor_service_pb2, image_service_pb2, instance_service_pb2, node_service_pb2
from leeward.v1.flavor_pb2 import Flavor
from leeward.v1.image_pb2 import DiskFormat
from leeward.v1.instance_pb2 import Instance
from leeward.v1.instance_service_pb2 import RebootMode
from leeward.v1.node_pb2 import Node
from leeward.v1.operation_pb2 import OperationMetadata
from leeward_lab.guest.commands import LabError
from leeward_lab.guest.record import GuestRecord, Tick, boots_in, read_guest_record, ticks_in
from leeward_lab.guest_image import build_guest_image, default_cache_dir
from leeward_lab.hosts.host import Host
from leeward_lab.hosts.processes import ProcessRef
from leeward_lab.hosts.waiting import until
from leeward_lab.real.cluster import RealCluster
from leeward_lab.real.layout import Shape

PARENT = "projects/default"
IMAGE, FLAVOR = f"{PARENT}/images/tiny", "flavors/tiny"
CALL_S = 10.0
BOOT_S = 120.0
_TIDY_S = 60.0
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Qemu:
    """A QEMU process that has a guest's disk: on which host, and when it was started, on CLOCK_BOOTTIME.

    `pid` is the machine's number of it, `pid_inside` that of its host.
    """

    host: str
    pid: int
    pid_inside: int
    started_s: float


class Lab:
    """A real cluster, with a client of its public API and the questions that tests ask of both."""

    def __init__(self, cluster: RealCluster, client: Client, *, image: Path) -> None:
        self.cluster = cluster
        self.client = client
        self.image = image

    def host(self, name: str) -> Host:
        """The host of that name, to be mistreated."""
        return self.cluster.host(name)

    def client_of(self, controller: str) -> Client:
        """A client of that controller alone."""
        number = self.cluster.shape.controller_names.index(controller)
        return self.cluster.client(endpoints=[self.cluster.endpoints[number]])

    async def supply(self) -> None:
        """The image and the flavor that `launch` uses, unless they are there."""
        try:
            await self.client.upload_image(
                parent=PARENT, image_id="tiny", path=self.image, format=DiskFormat.DISK_FORMAT_QCOW2
            )
            request = flavor_service_pb2.CreateFlavorRequest(
                flavor_id="tiny", flavor=Flavor(vcpus=1, memory_mib=128, disk_gib=1)
            )
            await self.client.flavors.CreateFlavor(request, timeout=CALL_S)
            larger = flavor_service_pb2.CreateFlavorRequest(
                flavor_id="small", flavor=Flavor(vcpus=1, memory_mib=192, disk_gib=2)
            )
            await self.client.flavors.CreateFlavor(larger, timeout=CALL_S)
        except AlreadyExists:
            return

    async def launch(
        self, name: str, *, host: str = "", image: str = IMAGE, flavor: str = FLAVOR, **more: Any
    ) -> "Guest":
        """Launch an instance and wait until it is ACTIVE; its guest may still be booting.

        `more` are further fields of the instance.
        """
        request = instance_service_pb2.CreateInstanceRequest(
            parent=PARENT,
            instance_id=name,
            instance=Instance(flavor=flavor, image=image, **more),
            node=f"nodes/{host}" if host else "",
        )
        await self.done(self.client.instances.CreateInstance(request, timeout=CALL_S))
        guest = Guest(self, f"{PARENT}/instances/{name}", "")
        guest.uid = (await guest.record()).uid
        return guest

    async def running(self, name: str, *, host: str, **more: Any) -> "Guest":
        """Launch an instance and wait until its guest has booted and writes. `more` as for `launch`."""
        guest = await self.launch(name, host=host, **more)
        await guest.until_tick(boot=1, more=2)
        return guest

    async def done(self, call: Awaitable[Operation], *, within_s: float = BOOT_S) -> Operation:
        """The operation that a call begins, once it has ended. Raises the error it ended with."""
        return await self.client.wait(await call, timeout_s=within_s)

    async def node(self, host: str) -> Node:
        """What the API says of a host."""
        return await self.client.nodes.GetNode(node_service_pb2.GetNodeRequest(name=f"nodes/{host}"), timeout=CALL_S)

    async def condition(self, host: str) -> str:
        """Its condition, as a word."""
        return Node.Condition.Name((await self.node(host)).condition).removeprefix("CONDITION_")

    async def conditions(self) -> dict[str, tuple[str, int]]:
        """Each node's condition and since when, in ns: equal twice means that no node left its condition meanwhile."""
        nodes = (await self.client.list_nodes()).items
        return {node.name: (Node.Condition.Name(node.condition), node.condition_time.ToNanoseconds()) for node in nodes}

    async def until_condition(self, host: str, *conditions: str, within_s: float = 30.0) -> str:
        """Wait until a host is in one of these conditions; which one."""
        seen = ""

        async def there() -> bool:
            nonlocal seen
            seen = await self.condition(host)
            return seen in conditions

        await until(there, what=f"{host} becoming {' or '.join(conditions)}", timeout_s=within_s, poll_s=0.05)
        return seen

    async def uncordon(self, host: str) -> None:
        """Let a host take guests again, also one in quarantine."""
        await self.client.nodes.UncordonNode(node_service_pb2.UncordonNodeRequest(name=f"nodes/{host}"), timeout=CALL_S)
        await self.until_condition(host, "READY")

    async def until_armed(self, host: str, *, armed: bool = True) -> None:
        """Wait until the API says that a host's guard is armed, or that it is not."""

        async def there() -> bool:
            return (await self.node(host)).guard_armed == armed

        await until(there, what=f"the guard of {host} {'' if armed else 'dis'}armed", timeout_s=30, poll_s=0.05)

    async def return_home(self, host: str) -> None:
        """Power a host on again, with all that its service manager starts at boot."""
        await self.host(host).start()
        await self.cluster.start_host_services(host)

    async def domains(self) -> dict[str, list[str]]:
        """What libvirt knows of on each host, running or not."""
        found = {}
        for name in self.cluster.shape.host_names:
            if self.host(name).running:
                listed = await self.host(name).run(["virsh", "-c", "qemu:///system", "list", "--all", "--name"])
                found[name] = listed.stdout.split()
        return found

    def qemus(self, uid: str) -> list[Qemu]:
        """Every process on the machine that runs this guest, wherever."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().decode(errors="replace")
                if "qemu-system" not in command.split("\0")[0] or f"/{uid}/" not in command:
                    continue
                started_s = ProcessRef.of(int(process.name)).started_ticks / _TICKS_A_SECOND
                found.append(Qemu(self._host_of(process), int(process.name), _pid_inside(process), started_s))
            except (FileNotFoundError, ProcessLookupError, LabError):
                continue  # It ended while it was looked at.
        return found

    def _host_of(self, process: Path) -> str:
        network = os.readlink(process / "ns/net")
        for name in self.cluster.shape.host_names:
            for program in ("libvirtd", "agent", "guard"):
                try:
                    pid = self.host(name).spawned(program).process.pid
                    if os.readlink(f"/proc/{pid}/ns/net") == network:
                        return name
                except (LabError, FileNotFoundError):
                    continue  # Powered off, or that program is just not running.
        return "nowhere"

    async def delete(self, name: str) -> None:
        """Delete an instance for good."""
        request = instance_service_pb2.DeleteInstanceRequest(name=name, purge=True)
        await self.done(self.client.instances.DeleteInstance(request, timeout=CALL_S))

    async def tidy(self) -> None:
        """Delete every instance and what was made of them, and wait until every host is READY."""
        listing = await self.client.list_instances("projects/-")
        await asyncio.gather(*(self.delete(instance.name) for instance in listing.items))
        for image in (await self.client.list_images("projects/-")).items:
            if "source_instance" in image.properties:
                await self.client.images.DeleteImage(
                    image_service_pb2.DeleteImageRequest(name=image.name), timeout=CALL_S
                )
        for host in self.cluster.shape.host_names:
            await self.until_condition(host, "READY")
            await self.until_armed(host)


@dataclass
class Guest:
    """One instance and the guest in it."""

    lab: Lab
    name: str
    uid: str

    @property
    def disk(self) -> Path:
        """Its root disk in the pool."""
        return self.lab.cluster.lab.pool / "instances" / self.uid / "root.qcow2"

    def disk_at(self, host: str) -> Path:
        """Its root disk, when that is in the pool of one host alone."""
        return self.lab.cluster.local_pool(host) / "instances" / self.uid / "root.qcow2"

    async def act(self, method: str, **fields: Any) -> OperationMetadata:
        """Call a method of InstanceService on it and wait for the end; what the operation told of itself."""
        request = getattr(instance_service_pb2, f"{method}Request")(name=self.name, **fields)
        call = getattr(self.lab.client.instances, method)
        return metadata_of(await self.lab.done(call(request, timeout=CALL_S)))

    async def until_written(self, text: str, *, within_s: float = BOOT_S) -> None:
        """Wait until its console has told something."""

        async def there() -> bool:
            return text in self.written()

        await until(there, what=f"{self.name} writing {text!r}", timeout_s=within_s)

    async def record(self) -> Instance:
        """What the API says of it."""
        request = instance_service_pb2.GetInstanceRequest(name=self.name)
        return await self.lab.client.instances.GetInstance(request, timeout=CALL_S)

    async def host(self) -> str:
        """The host that the API says it is on."""
        return (await self.record()).node.removeprefix("nodes/")

    async def state(self) -> str:
        """Its state, as a word."""
        return Instance.State.Name((await self.record()).state).removeprefix("STATE_")

    async def start(self) -> None:
        """Start it."""
        request = instance_service_pb2.StartInstanceRequest(name=self.name)
        await self.lab.done(self.lab.client.instances.StartInstance(request, timeout=CALL_S))

    async def stop(self, *, grace_s: int = 30) -> None:
        """Stop it, killing it when it has not obeyed within `grace_s`."""
        request = instance_service_pb2.StopInstanceRequest(name=self.name, grace_period=Duration(seconds=grace_s))
        await self.lab.done(self.lab.client.instances.StopInstance(request, timeout=CALL_S))

    async def reboot(self, mode: RebootMode.ValueType) -> str:
        """Reboot it; what the operation says of how it was done."""
        request = instance_service_pb2.RebootInstanceRequest(name=self.name, mode=mode, timeout=Duration(seconds=20))
        done = await self.lab.done(self.lab.client.instances.RebootInstance(request, timeout=CALL_S))
        return metadata_of(done).note

    async def live_migrate(self, host: str, *, bandwidth_mib_s: int = 0) -> Operation:
        """Begin to live-migrate it; the operation, still running."""
        request = instance_service_pb2.LiveMigrateInstanceRequest(
            name=self.name, node=f"nodes/{host}", max_bandwidth_mib_per_second=bandwidth_mib_s
        )
        return await self.lab.client.instances.LiveMigrateInstance(request, timeout=CALL_S)

    async def move(self, host: str) -> None:
        """Live-migrate it, to the end."""
        await self.lab.client.wait(await self.live_migrate(host), timeout_s=BOOT_S)

    async def console(self) -> str:
        """Its console log, from the API."""
        request = instance_service_pb2.GetConsoleLogRequest(name=self.name)
        answer = await self.lab.client.instances.GetConsoleLog(request, timeout=CALL_S)
        return answer.data.decode(errors="replace")

    def written(self) -> str:
        """Its console log, read where it lies: while the API, or the host, cannot be reached."""
        log = self.lab.cluster.lab.directory / "console" / f"{self.uid}.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def last_tick(self) -> Tick:
        """The last line it has written, wherever it runs."""
        ticks = ticks_in(self.written())
        return ticks[-1] if ticks else Tick(0, 0, 0.0)

    async def until_tick(self, *, boot: int, more: int = 1, within_s: float = BOOT_S) -> Tick:
        """Wait until it has written `more` lines than now, the last of them in that boot. Reads where the log lies."""
        wanted = self.last_tick().line + more

        async def there() -> bool:
            return self.last_tick().boot >= boot and self.last_tick().line >= wanted

        await until(there, what=f"{self.name} reaching line {wanted} in boot {boot}", timeout_s=within_s)
        assert self.last_tick().boot == boot, f"{self.name} was booted once more than it should"
        return self.last_tick()

    def only_process(self) -> Qemu:
        """The one process that runs it; an AssertionError when there is none, or a second one."""
        qemus = self.lab.qemus(self.uid)
        assert len(qemus) == 1, f"{self.name} should run once; found {qemus}"
        return qemus[0]

    def check_undisturbed(self, *, boots: int = 1) -> None:
        """Its console tells no more boots than that, and each line once, in order: nothing was lost or repeated.

        A line is printed when it is on the disk, so the last one before a reboot may be there and not on the console.
        """
        text = self.written()
        assert boots_in(text) == list(range(1, boots + 1))
        ticks = ticks_in(text)
        assert ticks[0].line == 1
        for before, after in itertools.pairwise(ticks):
            unseen = after.line - before.line - 1
            assert unseen == 0 or (unseen == 1 and after.boot == before.boot + 1), f"{after} follows {before}"

    def check_survived(self, *, boots: int) -> None:
        """After a death: it booted from the same disk, which holds every line that its console acknowledged."""
        text, disk = self.written(), self.on_disk()
        ticks = ticks_in(text)
        lines = [tick.line for tick in ticks]
        assert boots_in(text) == list(range(1, boots + 1))
        assert lines == sorted(set(lines)), "a line was written twice, so the disk had lost it"
        assert disk.boots == boots
        assert disk.missing() == ()
        assert disk.overlapping() == (), "two guests wrote to one disk at the same time"
        assert disk.lines >= lines[-1]

    def on_disk(self) -> GuestRecord:
        """What its disk holds."""
        return read_guest_record(self.disk)


class Clusters:
    """Keeps one cluster up between tests, and makes another one when a test wants another shape or spoils it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made = 0
        self._kept: tuple[Shape, RealCluster] | None = None

    @asynccontextmanager
    async def lend(
        self, shape: Shape, *, config: Callable[[Path], Path] | None = None, failed: Callable[[], bool]
    ) -> AsyncIterator[Lab]:
        """A cluster of that shape with all hosts READY and no instances. `failed` tells whether the test spoilt it."""
        cluster = await self._take(shape, config)
        tidy = False
        try:
            image = await asyncio.to_thread(
                build_guest_image, self._directory / "tiny.qcow2", cache_dir=default_cache_dir()
            )
            async with cluster.client() as client:
                await cluster.until_ready(client)
                lab = Lab(cluster, client, image=image)
                await lab.supply()
                yield lab
                if not failed():
                    async with asyncio.timeout(_TIDY_S):
                        await lab.tidy()
                    tidy = True
        finally:
            if not tidy:
                print("\n".join(cluster.log_tails(30)))
                await self.destroy()

    async def _take(self, shape: Shape, config: Callable[[Path], Path] | None) -> RealCluster:
        if self._kept is not None and self._kept[0] == shape:
            return self._kept[1]
        await self.destroy()
        self._made += 1
        directory = self._directory / str(self._made)
        directory.mkdir()
        written = config(directory) if config else None
        cluster = await RealCluster.start(directory / "c", "tests", shape=shape, controller_config=written)
        self._kept = (shape, cluster)
        return cluster

    async def destroy(self) -> None:
        """Take down the cluster that is kept, if any, and see that no process of it is left."""
        if self._kept is None:
            return
        (_, cluster), self._kept = self._kept, None
        await cluster.destroy()
        assert _processes_in(cluster.lab.directory) == []


def _pid_inside(process: Path) -> int:
    """Its number in its innermost namespace (proc_pid_status(5))."""
    lines = (process / "status").read_text().splitlines()
    (numbers,) = [line for line in lines if line.startswith("NSpid:")]
    return int(numbers.split()[-1])


def _processes_in(directory: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(directory) in command:
            found.append(f"{process.name} {command}")
    return found


def guard_log(lab: Lab, host: str) -> list[dict[str, object]]:
    """The guard's own account, with times on CLOCK_BOOTTIME in `boottime_s`."""
    return [json.loads(line) for line in (lab.host(host).directory / "guard/log.jsonl").read_text().splitlines()]


async def gone(call: Callable[[], Awaitable[object]]) -> bool:
    """Whether a call answers NOT_FOUND."""
    try:
        await call()
    except NotFound:
        return True
    return False


async def code_of(call: Awaitable[object]) -> tuple[str, LeewardError | None]:
    """How a call ends: the name of its status code, and the error."""
    try:
        await call
    except LeewardError as error:
        return error.code.name, error
    return "OK", None
