"""The story: launch, live-migrate, cut the power, see every guest come back; and check that it was all true."""

import asyncio
import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from leeward.client import Client
from leeward.client.operations import metadata_of
from leeward.v1 import flavor_service_pb2, instance_service_pb2, node_service_pb2
from leeward.v1.flavor_pb2 import Flavor
from leeward.v1.image_pb2 import DiskFormat
from leeward.v1.instance_pb2 import Instance
from leeward.v1.node_pb2 import FenceProofKind
from leeward.v1.operation_pb2 import OperationMetadata
from leeward.v1.operation_service_pb2 import WatchOperationResponse
from leeward_lab.demo.observer import Observer
from leeward_lab.demo.stage import DiskRecord, Stage
from leeward_lab.guest.record import Tick, boots_in, ticks_in

PARENT = "projects/default"
_IMAGE, _FLAVOR = f"{PARENT}/images/tiny", "flavors/tiny"
_FORMATS = {"qcow2": DiskFormat.DISK_FORMAT_QCOW2, "raw": DiskFormat.DISK_FORMAT_RAW}
_VICTIM, _OTHER = "nodes/host-a", "nodes/host-b"
_GUESTS = ("web-1", "web-2", "web-3")
_LAUNCH_S, _BOOT_S, _MIGRATE_S, _FAILOVER_S = 120.0, 90.0, 60.0, 60.0


@dataclass
class Figures:
    """What the closing line tells, in the order in which it came about."""

    values: dict[str, str] = field(default_factory=dict)

    def seconds(self, name: str, value: float) -> None:
        """Keep a number of seconds."""
        self.values[name] = f"{value:.2f}"

    def line(self, hypervisor: str) -> str:
        """`demo: ok hypervisor=... detect_s=...`"""
        order = (
            "detect_s", "proof_s", "first_restart_s", "all_restart_s", "migrate_s", "migrate_downtime_ms",
        )  # fmt: skip
        return " ".join(["demo: ok", f"hypervisor={hypervisor}", *(f"{name}={self.values[name]}" for name in order)])


class Untrue(Exception):
    """Something that the demonstration shows does not hold."""


class Story:
    """Plays the story on a stage, telling it on a console."""

    def __init__(self, stage: Stage, console: Console) -> None:
        self._stage = stage
        self._client: Client = stage.client
        self._console = console
        self.figures = Figures()

    async def play(self) -> Figures:
        """All chapters. Raises Untrue, LeewardError or TimeoutError where the story fails."""
        async with Observer(self._client) as observer:
            await self._set_the_stage(observer)
            await self._launch(observer)
            await self._migrate(observer)
            await self._cut_the_power(observer)
            await self._check(observer)
        return self.figures

    def _chapter(self, title: str) -> None:
        self._console.print()
        self._console.rule(f"[bold]{title}", align="left")

    async def _set_the_stage(self, observer: Observer) -> None:
        self._chapter("The cluster")
        await observer.until(lambda: len(observer.nodes) >= 3, within_s=30.0, what="three hosts have registered")
        table = Table("NODE", "CONDITION", "HYPERVISOR", "GUARD", box=None)
        for name, node in sorted(observer.nodes.items()):
            table.add_row(name, "READY", f"{node.hypervisor} {node.hypervisor_version}", "armed")
        self._console.print(table)
        begun = time.monotonic()
        image = await self._client.upload_image(
            parent=PARENT, image_id="tiny", path=self._stage.image, format=_FORMATS[self._stage.image_format]
        )
        self._console.print(
            f"image {image.name}: {image.size_bytes / 2**20:.1f} MiB in {time.monotonic() - begun:.2f} s, "
            f"sha256 {image.sha256[:12]}…"
        )
        flavor = Flavor(vcpus=1, memory_mib=128, disk_gib=1)
        await self._client.flavors.CreateFlavor(
            flavor_service_pb2.CreateFlavorRequest(flavor_id="tiny", flavor=flavor), timeout=10.0
        )

    async def _launch(self, observer: Observer) -> None:
        self._chapter("Launch three guests")
        places: dict[str, str] = dict(zip(_GUESTS, (_VICTIM, _VICTIM, _OTHER), strict=True))
        begun = time.monotonic()

        async def launch(guest: str) -> None:
            request = instance_service_pb2.CreateInstanceRequest(
                parent=PARENT,
                instance_id=guest,
                instance=Instance(flavor=_FLAVOR, image=_IMAGE),
                node=places[guest],
            )
            operation = await self._client.instances.CreateInstance(request, timeout=10.0)
            await self._client.wait(operation, timeout_s=_LAUNCH_S)
            self._console.print(f"  {time.monotonic() - begun:5.2f} s  {guest} is ACTIVE on {places[guest]}")

        await asyncio.gather(*(launch(guest) for guest in _GUESTS))
        for guest in _GUESTS:
            await self._until_ticking(guest, boot=1, lines=2)
        self._console.print(f"  {time.monotonic() - begun:5.2f} s  all have booted from their own disks and write")

    async def _migrate(self, observer: Observer) -> None:
        guest = _GUESTS[2]
        self._chapter(f"Live-migrate {guest} from {_OTHER} to {_VICTIM}")
        before = await self._ticks(guest)
        begun = time.monotonic()
        operation = await self._client.instances.LiveMigrateInstance(
            instance_service_pb2.LiveMigrateInstanceRequest(name=f"{PARENT}/instances/{guest}", node=_VICTIM),
            timeout=10.0,
        )
        with Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeElapsedColumn(),
            console=self._console,
        ) as bars:
            bar = bars.add_task("memory", total=None)

            def show(update: WatchOperationResponse) -> None:
                progress = update.metadata.migration
                if progress.memory_total_bytes:
                    done = progress.memory_total_bytes - progress.memory_remaining_bytes
                    bars.update(bar, total=progress.memory_total_bytes, completed=done)

            ended = await self._client.wait(operation, timeout_s=_MIGRATE_S, on_update=show)
        took_s = time.monotonic() - begun
        metadata: OperationMetadata = metadata_of(ended)
        downtime_ms = metadata.migration.downtime.ToMilliseconds()
        self.figures.seconds("migrate_s", took_s)
        self.figures.values["migrate_downtime_ms"] = str(downtime_ms)
        self._console.print(f"  {took_s:.2f} s in all, the guest stood still for {downtime_ms} ms")
        await observer.until(
            lambda: observer.instances[f"{PARENT}/instances/{guest}"].node == _VICTIM,
            within_s=10.0,
            what="the record says so",
        )
        await self._until_ticking(guest, boot=1, lines=before[-1].line + 2)

    async def _cut_the_power(self, observer: Observer) -> None:
        self._chapter(f"Cut the power of {_VICTIM}, which carries {len(_GUESTS)} guests")
        observer.forget()
        cut_s = time.monotonic()
        await self._stage.cut_power(_VICTIM.removeprefix("nodes/"))
        names = [f"{PARENT}/instances/{guest}" for guest in _GUESTS]

        def restarted() -> dict[str, tuple[float, str]]:
            found = {}
            for (name, node), at_s in observer.places.items():
                if name in names and node not in ("", _VICTIM):
                    found[name] = (at_s, node)
            return found

        await observer.until(
            lambda: len(restarted()) == len(names) and (_VICTIM, "FENCED") in observer.conditions,
            within_s=_FAILOVER_S,
            what="every guest runs elsewhere",
        )
        lost_s = min(
            at_s for (node, condition), at_s in observer.conditions.items() if node == _VICTIM and condition != "READY"
        )
        proof_at_s = observer.conditions[_VICTIM, "FENCED"]
        node = await self._client.nodes.GetNode(node_service_pb2.GetNodeRequest(name=_VICTIM), timeout=10.0)
        proof = node.fence_proof
        kind = FenceProofKind.Name(proof.kind).removeprefix("FENCE_PROOF_KIND_").lower()
        events = [(cut_s, "power cut"), (lost_s, "lease lost"), (proof_at_s, f"proof: {kind}")]
        times = sorted((at_s, name, node) for name, (at_s, node) in restarted().items())
        events += [(at_s, f"{name.rpartition('/')[2]} restarted on {node}") for at_s, name, node in times]
        for at_s, what in sorted(events):
            self._console.print(f"  {at_s - cut_s:6.2f} s  {what}")
        self._console.print(f"  [dim]{proof.evidence}", highlight=False)
        self.figures.seconds("detect_s", lost_s - cut_s)
        self.figures.seconds("proof_s", proof_at_s - cut_s)
        self.figures.seconds("first_restart_s", times[0][0] - cut_s)
        self.figures.seconds("all_restart_s", times[-1][0] - cut_s)

    async def _check(self, observer: Observer) -> None:
        self._chapter("Was it true?")
        for guest in _GUESTS:
            await self._until_ticking(guest, boot=2, lines=0)
        for guest in _GUESTS:
            instance = observer.instances[f"{PARENT}/instances/{guest}"]
            await self._check_guest(guest, instance)

    async def _check_guest(self, guest: str, instance: Instance) -> None:
        hosts = await self._stage.processes_of(instance.uid)
        if [f"nodes/{host}" for host in hosts] != [instance.node]:
            raise Untrue(f"{guest} should run once, on {instance.node}; processes were found on {hosts}")
        text = await self._console_text(guest)
        ticks, boots = ticks_in(text), boots_in(text)
        if boots != [1, 2]:
            raise Untrue(f"{guest} should have booted twice from the same disk; its console shows boots {boots}")
        record = await self._stage.disk_record(instance.uid)
        acknowledged = _check_lines(guest, ticks, record)
        self._console.print(
            f"  {guest}: one process, on {instance.node}; same disk, boot {record.boots}; "
            f"all {acknowledged} lines it had acknowledged before the cut are on it"
        )

    async def _until_ticking(self, guest: str, *, boot: int, lines: int) -> None:
        deadline_s = time.monotonic() + _BOOT_S
        while time.monotonic() < deadline_s:
            ticks = await self._ticks(guest)
            if ticks and ticks[-1].boot >= boot and ticks[-1].line >= lines:
                return
            await asyncio.sleep(0.2)
        raise Untrue(f"{guest} did not get to line {lines} of boot {boot} within {_BOOT_S:g} s")

    async def _ticks(self, guest: str) -> list[Tick]:
        return ticks_in(await self._console_text(guest))

    async def _console_text(self, guest: str) -> str:
        request = instance_service_pb2.GetConsoleLogRequest(name=f"{PARENT}/instances/{guest}")
        answer = await self._client.instances.GetConsoleLog(request, timeout=10.0)
        return answer.data.decode(errors="replace")


def _check_lines(guest: str, ticks: list[Tick], record: DiskRecord) -> int:
    """How many lines were acknowledged before the cut; raises Untrue unless all of them are on the disk, in order."""
    first = [tick.line for tick in ticks if tick.boot == 1]
    second = [tick.line for tick in ticks if tick.boot == 2]
    if first != list(range(1, len(first) + 1)):
        raise Untrue(f"{guest}: the lines of its first boot are not 1, 2, 3, …: {first}")
    # The last line before the cut may be on the disk without having been acknowledged; nothing else may differ.
    if not second or second[0] not in (first[-1] + 1, first[-1] + 2):
        raise Untrue(f"{guest}: {first[-1]} lines were acknowledged, but it went on with line {second[:1]}")
    if record.missing or record.lines < second[0]:
        raise Untrue(f"{guest}: its disk ends at line {record.lines} and lacks {record.missing}")
    if record.boots != 2:
        raise Untrue(f"{guest}: its disk counts {record.boots} boots instead of 2")
    return len(first)
