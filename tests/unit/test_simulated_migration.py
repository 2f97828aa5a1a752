"""What only a simulation shows of migrations: a post-copy cut in the middle, and one that a broken process leaves."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from tests.support.hypervisors import guest_spec, until

from leeward.agent.types import Escalation, GuestState, MigrationLimits, MigrationPhase, MigrationProgress
from leeward.clock import SystemClock
from leeward_agent.domain.guest_files import ConsoleFiles, GuestDisks
from leeward_agent.hypervisors.simulated.driver import SimulatedHypervisor
from leeward_agent.hypervisors.simulated.files import read_record
from leeward_agent.hypervisors.simulated.guest import SimulatedTiming
from leeward_agent.hypervisors.simulated.host import SimulatedHost, SimulatedWorld
from leeward_agent.ports import FolderMove, MigrationTransport

QUICK = SimulatedTiming(start_s=0.001, prepare_s=0.001, switch_s=0.001, step_s=0.01, tick_s=0.01, written_mib=8)
BUSY = MigrationLimits(bandwidth_mib_s=16, max_downtime_ms=10, escalation=Escalation.POST_COPY)
SPEC = replace(guest_spec(run_epoch=2), memory_mib=4)


class Hosts:
    """Two hosts, of one process or of two, each with a folder of its own, and a guest on the first that writes fast."""

    def __init__(self, directory: Path, *, processes: int) -> None:
        self.directory = directory
        self.cut = False
        for node in ("a", "b"):
            (directory / node).mkdir()
        worlds = [SimulatedWorld(reaches=lambda _, __: not self.cut) for _ in range(processes)]
        self.a = self._host(worlds[0], "host-a")
        self.b = self._host(worlds[-1], "host-b")
        self.source, self.destination = SimulatedHypervisor(self.a), SimulatedHypervisor(self.b)
        memory, disk = directory / "memory", directory / "disk"
        self.transport = MigrationTransport(directory / "control", memory, disk, memory, disk)

    def _host(self, world: SimulatedWorld, node: str) -> SimulatedHost:
        host = world.add_host(node, clock=SystemClock(), timing=QUICK, writes_files=True)
        host.dirty_mib_s["one"] = 64
        return host

    async def start(self) -> None:
        console = ConsoleFiles(log=self.directory / "one.log", socket=self.directory / "one.serial")
        disks = GuestDisks(root=self.directory / "a" / "root.qcow2")
        await self.source.start(replace(SPEC, run_epoch=1), disks=disks, console=console)

    def migrate(self, limits: MigrationLimits = BUSY) -> AsyncIterator[MigrationProgress]:
        folders = FolderMove(here=self.directory / "a", there=self.directory / "b")
        return self.source.migrate(SPEC, destination="host-b", transport=self.transport, folders=folders, limits=limits)

    async def only_there(self) -> None:
        assert (await self.source.get_guest("one")).state is GuestState.ABSENT
        there = await self.destination.get_guest("one")
        assert (there.state, there.run_epoch, there.migrating) == (GuestState.RUNNING, 2, False)


async def outcome(reports: AsyncIterator[MigrationProgress]) -> MigrationProgress:
    *_, last = [progress async for progress in reports]
    return last


async def until_switching(reports: AsyncIterator[MigrationProgress]) -> None:
    async for progress in reports:
        if progress.phase is MigrationPhase.SWITCHING:
            return


async def both_hold_a_half(hosts: Hosts) -> None:
    here, there = await hosts.source.get_guest("one"), await hosts.destination.get_guest("one")
    assert (here.state, here.migrating) == (GuestState.PAUSED, True)
    assert there.migrating
    assert await hosts.source.is_split("one")
    assert await hosts.destination.is_split("one")


async def test_a_post_copy_that_was_cut_is_in_two_halves_until_it_is_taken_up_again(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, processes=1)
    await hosts.start()
    reports = hosts.migrate()
    await until_switching(reports)
    hosts.cut = True
    broken = await outcome(reports)
    assert broken.phase is MigrationPhase.FAILED
    assert "each host holds a part of the guest's memory" in broken.error
    await both_hold_a_half(hosts)

    hosts.cut = False
    mended = await outcome(hosts.migrate())

    assert mended.phase is MigrationPhase.COMPLETED, mended
    await hosts.only_there()
    assert not await hosts.destination.is_split("one")


async def test_a_half_whose_other_half_is_gone_is_never_mended(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, processes=1)
    await hosts.start()
    reports = hosts.migrate()
    await until_switching(reports)
    hosts.b.power_off()
    assert (await outcome(reports)).phase is MigrationPhase.FAILED
    hosts.b.power_on()

    assert (await outcome(hosts.migrate())).phase is MigrationPhase.FAILED
    assert await hosts.source.is_split("one")
    await hosts.source.kill("one")
    assert not await hosts.source.is_split("one")


async def test_between_processes_disks_go_along_and_a_cut_post_copy_is_mended(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, processes=2)
    await hosts.destination.listen(tmp_path / "control")
    await hosts.start()

    async def wrote() -> bool:
        return read_record(tmp_path / "a" / "root.qcow2").lines >= 3

    await until(wrote, within_s=5, what="lines on the disk")
    reports = hosts.migrate(replace(BUSY, copies_disks=True, target_pool_id="other", bandwidth_mib_s=4))
    await until_switching(reports)
    lines = read_record(tmp_path / "a" / "root.qcow2").lines

    async def runs_there() -> bool:
        return (await hosts.destination.get_guest("one")).state is GuestState.RUNNING

    await until(runs_there, within_s=5, what="the guest runs on the destination")
    await hosts.destination.close()
    assert (await outcome(reports)).phase is MigrationPhase.FAILED
    await both_hold_a_half(hosts)

    await hosts.destination.listen(tmp_path / "control")
    assert (await outcome(hosts.migrate(replace(BUSY, copies_disks=True)))).phase is MigrationPhase.COMPLETED
    await hosts.only_there()
    assert read_record(tmp_path / "b" / "root.qcow2").lines >= lines >= 3
    await hosts.destination.close()
    hosts.b.power_off()
