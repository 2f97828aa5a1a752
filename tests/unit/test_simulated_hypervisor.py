"""What the simulation adds to the contract: a world that can be watched, made to fail, and spread over processes."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.hypervisors import guest_spec, until

from leeward.agent.types import GuestState, MigrationLimits, MigrationPhase, MigrationProgress, RebootMode, StopCause
from leeward.clock import SystemClock
from leeward.errors import HypervisorError
from leeward_agent.domain.guest_files import ConsoleFiles, GuestDisks
from leeward_agent.hypervisors.simulated.driver import SimulatedHypervisor
from leeward_agent.hypervisors.simulated.files import read_record
from leeward_agent.hypervisors.simulated.guest import SimulatedTiming
from leeward_agent.hypervisors.simulated.host import SimulatedHost, SimulatedWorld
from leeward_agent.ports import FolderMove, MigrationTransport

QUICK = SimulatedTiming(
    start_s=0.001, shutdown_s=0.001, prepare_s=0.001, switch_s=0.001, step_s=0.005, memory_mib_s=4096, tick_s=0.01
)
FOLDERS = FolderMove(Path("/nonexistent"), Path("/nonexistent"))
NOWHERE = MigrationTransport(*[Path("/nonexistent")] * 5)


class Runs:
    """Every time a guest got or lost its disk on a node."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str, bool, int]] = []

    def __call__(self, uid: str, node: str, running: bool, run_epoch: int) -> None:
        self.changes.append((uid, node, running, run_epoch))


def one_host(world: SimulatedWorld, node: str = "host-a", *, writes_files: bool = False) -> SimulatedHost:
    return world.add_host(node, clock=SystemClock(), timing=QUICK, writes_files=writes_files)


async def start(host: SimulatedHost, directory: Path, *, run_epoch: int = 1) -> SimulatedHypervisor:
    hypervisor = SimulatedHypervisor(host)
    await hypervisor.start(
        guest_spec(run_epoch=run_epoch),
        disks=GuestDisks(directory / "one.qcow2"),
        console=ConsoleFiles(log=directory / "one.log", socket=directory / "one.serial"),
    )
    return hypervisor


async def outcome(reports: AsyncIterator[MigrationProgress]) -> MigrationProgress:
    *_, last = [progress async for progress in reports]
    return last


async def test_world_is_told_each_time_a_guest_gets_or_loses_its_disk(tmp_path: Path) -> None:
    runs = Runs()
    world = SimulatedWorld(on_run_change=runs)
    source = await start(one_host(world), tmp_path)
    one_host(world, "host-b")

    last = await outcome(
        source.migrate(
            guest_spec(run_epoch=2), destination="host-b", transport=NOWHERE, folders=FOLDERS, limits=MigrationLimits()
        )
    )
    assert last.phase is MigrationPhase.COMPLETED
    assert world.running_on("one") == ["host-b"]
    world.hosts["host-b"].power_off()

    assert runs.changes == [
        ("one", "host-a", True, 1),
        ("one", "host-a", False, 1),
        ("one", "host-b", True, 2),
        ("one", "host-b", False, 2),
    ]
    assert world.running_on("one") == []


async def test_host_without_power_answers_nothing_and_keeps_definitions(tmp_path: Path) -> None:
    host = one_host(SimulatedWorld())
    hypervisor = await start(host, tmp_path)

    host.power_off()

    with pytest.raises(HypervisorError, match="powered off"):
        await hypervisor.get_guest("one")
    host.power_on()
    status = await SimulatedHypervisor(host).get_guest("one")
    assert (status.state, status.stop_cause) == (GuestState.STOPPED, StopCause.NONE)


async def test_start_is_carried_through_when_the_agent_dies_in_it(tmp_path: Path) -> None:
    host = one_host(SimulatedWorld())
    starting = asyncio.create_task(start(host, tmp_path))
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])

    async def runs() -> bool:
        return (await SimulatedHypervisor(host).get_guest("one")).state is GuestState.RUNNING

    await until(runs, within_s=5, what="the guest runs")


@pytest.mark.parametrize("phase", [MigrationPhase.PREPARING, MigrationPhase.COPYING, MigrationPhase.SWITCHING])
async def test_migration_can_be_made_to_fail_in_each_phase(phase: MigrationPhase, tmp_path: Path) -> None:
    runs = Runs()
    world = SimulatedWorld(on_run_change=runs)
    source = await start(one_host(world), tmp_path)
    destination = SimulatedHypervisor(one_host(world, "host-b"))
    world.hosts["host-a"].migration_errors[phase] = "so be it"

    last = await outcome(
        source.migrate(
            guest_spec(run_epoch=2), destination="host-b", transport=NOWHERE, folders=FOLDERS, limits=MigrationLimits()
        )
    )

    assert (last.phase, last.error) == (MigrationPhase.FAILED, "so be it")
    assert (await source.get_guest("one")).state is GuestState.RUNNING
    assert (await destination.get_guest("one")).state is GuestState.ABSENT
    assert runs.changes == [("one", "host-a", True, 1)]


async def test_guest_that_ignores_acpi_is_only_moved_by_force(tmp_path: Path) -> None:
    host = one_host(SimulatedWorld())
    hypervisor = await start(host, tmp_path)
    host.ignores_acpi.add("one")

    assert not await hypervisor.reboot("one", RebootMode.SOFT, timeout_s=0.05)
    await hypervisor.shut_down("one")
    await asyncio.sleep(5 * QUICK.shutdown_s)

    assert (await hypervisor.get_guest("one")).state is GuestState.RUNNING


async def test_guest_writes_its_console_and_counts_its_boots(tmp_path: Path) -> None:
    host = one_host(SimulatedWorld(), writes_files=True)
    hypervisor = await start(host, tmp_path)

    async def wrote() -> bool:
        return read_record(tmp_path / "one.qcow2").lines >= 2

    await until(wrote, within_s=5, what="two lines")
    await hypervisor.kill("one")
    before = read_record(tmp_path / "one.qcow2")
    await start(host, tmp_path)
    host.power_off()

    assert (before.boots, read_record(tmp_path / "one.qcow2").boots) == (1, 2)
    console = (tmp_path / "one.log").read_text()
    assert "leeward-guest: boot 1 line=0" in console
    assert "leeward-guest: tick boot=1 line=2" in console
    assert f"leeward-guest: boot 2 line={before.lines}" in console


class TwoProcesses:
    """Two worlds that know nothing of each other, with the destination's control socket: what two processes have."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.source_host = one_host(SimulatedWorld(), "host-a")
        self.destination_host = one_host(SimulatedWorld(), "host-b")
        self.destination = SimulatedHypervisor(self.destination_host)
        memory, disk = directory / "memory", directory / "disk"
        self.transport = MigrationTransport(directory / "control", memory, disk, memory, disk)

    async def migrate(self, *, limits: MigrationLimits | None = None) -> tuple[SimulatedHypervisor, MigrationProgress]:
        await self.destination.listen(self.directory / "control")
        source = await start(self.source_host, self.directory)
        last = await outcome(
            source.migrate(
                guest_spec(run_epoch=2),
                destination="host-b",
                transport=self.transport,
                folders=FOLDERS,
                limits=limits or MigrationLimits(),
            )
        )
        await self.destination.close()
        return source, last


async def test_migration_between_processes(tmp_path: Path) -> None:
    hosts = TwoProcesses(tmp_path)

    source, last = await hosts.migrate()

    assert last.phase is MigrationPhase.COMPLETED, last
    assert last.memory_processed_bytes >= 96 * 1024 * 1024
    assert (await source.get_guest("one")).state is GuestState.ABSENT
    arrived = await hosts.destination.get_guest("one")
    assert (arrived.state, arrived.run_epoch, arrived.migrating) == (GuestState.RUNNING, 2, False)
    assert os.listdir(tmp_path) == [], "sockets are cleared away"


async def test_refused_migration_between_processes_leaves_the_guest(tmp_path: Path) -> None:
    hosts = TwoProcesses(tmp_path)
    await start(hosts.destination_host, tmp_path)

    source, last = await hosts.migrate()

    assert last.phase is MigrationPhase.FAILED
    assert "active on host-b already" in last.error
    assert (await source.get_guest("one")).state is GuestState.RUNNING


async def test_destination_process_that_dies_leaves_the_guest(tmp_path: Path) -> None:
    hosts = TwoProcesses(tmp_path)
    crawling = asyncio.create_task(hosts.migrate(limits=MigrationLimits(bandwidth_mib_s=1)))

    async def arriving() -> bool:
        return "one" in hosts.destination_host.guests

    await until(arriving, within_s=5, what="the guest begins to arrive")

    await hosts.destination.close()

    source, last = await crawling
    assert last.phase is MigrationPhase.FAILED
    assert (await source.get_guest("one")).state is GuestState.RUNNING
    assert hosts.destination_host.guests == {}
