"""What every hypervisor promises: the same suite for the simulation and for libvirt with real guests."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.support.hypervisors import (
    HypervisorLab,
    LibvirtLab,
    guest_spec,
    libvirt_lab,
    simulated_lab,
    until,
)

from leeward.agent.types import (
    GuestState,
    GuestStatus,
    MigrationLimits,
    MigrationPhase,
    MigrationProgress,
    RebootMode,
    StopCause,
)
from leeward.errors import HypervisorError
from leeward_agent.ports import Hypervisor

# At this rate even a guest that has only just been started is under way for seconds.
CRAWLING = MigrationLimits(bandwidth_mib_s=1)


@pytest.fixture(params=["simulated", pytest.param("libvirt", marks=pytest.mark.hosts)])
async def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HypervisorLab]:
    # A short name: paths of unix sockets must not exceed 107 characters.
    directory = tmp_path_factory.mktemp("hv")
    make = simulated_lab if request.param == "simulated" else libvirt_lab
    async with make(directory) as made:
        yield made


@pytest.fixture
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LibvirtLab]:
    async with libvirt_lab(tmp_path_factory.mktemp("hv")) as made:
        yield made


@asynccontextmanager
async def told(hypervisor: Hypervisor) -> AsyncIterator[list[GuestStatus]]:
    """What the hypervisor tells of guests meanwhile."""
    statuses: list[GuestStatus] = []
    changes = hypervisor.events()

    async def collect() -> None:
        async for status in changes:
            statuses.append(status)  # noqa: PERF401 - a test looks at the list meanwhile.

    task = asyncio.create_task(collect())
    try:
        yield statuses
    finally:
        task.cancel()
        await asyncio.wait([task])


async def tells(statuses: list[GuestStatus], *, state: GuestState, uid: str = "one") -> GuestStatus:
    """The last status told, once it is `state`."""

    async def last_is_it() -> bool:
        last = [status for status in statuses if status.uid == uid][-1:]
        return bool(last) and last[0].state is state and not last[0].migrating

    await until(last_is_it, within_s=15, what=f"an event that {uid} is {state}, after {statuses}")
    return [status for status in statuses if status.uid == uid][-1]


def migrate(
    lab: HypervisorLab, *, to: str = "host-b", run_epoch: int = 2, limits: MigrationLimits | None = None
) -> AsyncIterator[MigrationProgress]:
    source = lab.b if to == "host-a" else lab.a
    return source.migrate(
        guest_spec(run_epoch=run_epoch),
        destination=to,
        transport=lab.transport(to),
        folders=lab.folders,
        limits=limits or MigrationLimits(),
    )


async def until_copying(reports: AsyncIterator[MigrationProgress]) -> None:
    async for progress in reports:
        if progress.phase is MigrationPhase.COPYING and progress.memory_processed_bytes:
            return
    pytest.fail("the migration ended before anything was done to it")


async def outcome(reports: AsyncIterator[MigrationProgress]) -> MigrationProgress:
    *_, last = [progress async for progress in reports]
    return last


async def test_host_says_what_it_has(lab: HypervisorLab) -> None:
    capacity = await lab.a.capacity()

    assert capacity.vcpus >= 1
    assert capacity.memory_mib >= 512
    assert capacity.hypervisor in ("qemu", "simulated")
    assert capacity.hypervisor_version


async def test_guest_is_started_killed_and_forgotten_and_each_may_be_repeated(lab: HypervisorLab) -> None:
    assert (await lab.a.get_guest("one")).state is GuestState.ABSENT
    await lab.a.kill("one")
    await lab.a.shut_down("one")
    await lab.a.undefine("one")

    async with told(lab.a) as statuses:
        await lab.start(lab.a, guest_spec(run_epoch=7))
        await lab.start(lab.a, guest_spec(run_epoch=7))
        running = GuestStatus(uid="one", name=guest_spec().name, state=GuestState.RUNNING, run_epoch=7)
        assert await lab.a.get_guest("one") == running
        assert await tells(statuses, state=GuestState.RUNNING) == running
        with pytest.raises(HypervisorError, match="runs"):
            await lab.a.undefine("one")

        await lab.a.kill("one")
        await lab.a.kill("one")
        await lab.a.shut_down("one")
        stopped = await lab.a.get_guest("one")
        assert (stopped.state, stopped.stop_cause) == (GuestState.STOPPED, StopCause.REQUESTED)
        assert await tells(statuses, state=GuestState.STOPPED) == stopped

        await lab.a.undefine("one")
        await lab.a.undefine("one")
        assert (await lab.a.get_guest("one")).state is GuestState.ABSENT
        await tells(statuses, state=GuestState.ABSENT)
    assert await lab.a.list_guests() == ()


async def test_guests_are_listed_in_order_with_the_epoch_of_their_last_start(lab: HypervisorLab) -> None:
    await lab.start(lab.a, guest_spec("two", run_epoch=2))
    await lab.start(lab.a, guest_spec("one", run_epoch=1))
    await lab.a.kill("two")
    await lab.start(lab.a, guest_spec("two", run_epoch=3))

    listed = await lab.a.list_guests()

    assert [(each.uid, each.state, each.run_epoch) for each in listed] == [
        ("one", GuestState.RUNNING, 1),
        ("two", GuestState.RUNNING, 3),
    ]
    assert await lab.b.list_guests() == ()
    await lab.a.set_run_epoch("one", 5)
    assert (await lab.a.get_guest("one")).run_epoch == 5
    assert "one" in await lab.a.definition("one")
    assert await lab.a.definition("three") == ""


async def test_guest_that_cannot_start_leaves_nothing_behind_and_says_why(lab: HypervisorLab) -> None:
    lab.make_disk("one")
    lab.break_start("one")

    with pytest.raises(HypervisorError, match=r"start guest one: .*(disk|qcow2)"):
        await lab.start(lab.a, guest_spec())

    assert await lab.a.list_guests() == ()


async def test_crash_is_told_and_told_apart(lab: HypervisorLab) -> None:
    async with told(lab.a) as statuses:
        await lab.start(lab.a, guest_spec())
        await tells(statuses, state=GuestState.RUNNING)
        await lab.crash_guest("host-a", "one")

        crashed = await tells(statuses, state=GuestState.STOPPED)

    assert crashed.stop_cause is StopCause.CRASHED
    await lab.start(lab.a, guest_spec(run_epoch=2))
    assert (await lab.a.get_guest("one")).state is GuestState.RUNNING


async def test_guest_reboots_and_powers_off_by_acpi_and_its_console_is_kept(lab: HypervisorLab) -> None:
    await lab.start(lab.a, guest_spec())
    with lab.ignoring_acpi("one"):
        assert not await lab.a.reboot("one", RebootMode.SOFT, timeout_s=0.2)
        assert await lab.a.reboot("one", RebootMode.HARD)
    await lab.ticks_on("one")
    boot = lab.boots("one")[-1]

    assert await lab.a.reboot("one", RebootMode.SOFT, timeout_s=20)
    await until(_async(lambda: lab.boots("one")[-1] == boot + 1), within_s=40, what="one more boot")
    await lab.ticks_on("one")
    await lab.a.shut_down("one")

    stopped = await lab.becomes(lab.a, GuestState.STOPPED)
    assert stopped.stop_cause is StopCause.GUEST


async def test_live_migration_moves_a_running_guest(lab: HypervisorLab) -> None:
    await lab.boot(lab.a, guest_spec(run_epoch=1))
    began_s = time.monotonic()

    async with told(lab.b) as statuses:
        reports = [
            progress
            async for progress in migrate(lab, run_epoch=2, limits=MigrationLimits(bandwidth_mib_s=3 * lab.slow_mib_s))
        ]
        took_s = time.monotonic() - began_s
        await tells(statuses, state=GuestState.RUNNING)

    last = reports[-1]
    assert last.phase is MigrationPhase.COMPLETED, last
    assert last.memory_total_bytes >= 96 * 1024 * 1024
    assert last.memory_remaining_bytes == 0
    assert 0 < last.downtime_ms < 2000
    assert len(reports) / took_s >= 4
    copying = [each for each in reports if each.phase is MigrationPhase.COPYING]
    assert any(
        0 < each.memory_remaining_bytes < each.memory_total_bytes and each.throughput_bytes_s for each in copying
    )
    assert (await lab.a.get_guest("one")).state is GuestState.ABSENT
    assert await lab.b.get_guest("one") == GuestStatus(
        uid="one", name=guest_spec().name, state=GuestState.RUNNING, run_epoch=2
    )
    await lab.ticks_on("one")
    assert lab.boots("one") == [1], "the guest must not notice"


async def test_cancelled_migration_leaves_the_guest_where_it_was(lab: HypervisorLab) -> None:
    await lab.start(lab.a, guest_spec())
    reports = migrate(lab, limits=CRAWLING)
    await until_copying(reports)
    assert (await lab.a.get_guest("one")).migrating
    assert (await lab.b.get_guest("one")).state in (GuestState.PAUSED, GuestState.ABSENT)

    await lab.a.cancel_migration("one")

    assert (await outcome(reports)).phase is MigrationPhase.CANCELLED
    status = await lab.a.get_guest("one")
    assert (status.state, status.run_epoch, status.migrating) == (GuestState.RUNNING, 1, False)
    await lab.becomes(lab.b, GuestState.ABSENT)
    await lab.a.cancel_migration("one")


async def test_migration_that_takes_too_long_fails_and_the_guest_stays(lab: HypervisorLab) -> None:
    await lab.start(lab.a, guest_spec())

    last = await outcome(migrate(lab, limits=MigrationLimits(bandwidth_mib_s=1, timeout_s=2)))

    assert last.phase is MigrationPhase.FAILED
    assert "not done within 2 s" in last.error
    assert (await lab.a.get_guest("one")).state is GuestState.RUNNING


async def test_migration_survives_the_agent_and_is_followed_by_the_next_one(lab: HypervisorLab) -> None:
    await lab.boot(lab.a, guest_spec())
    reports = migrate(lab, limits=MigrationLimits(bandwidth_mib_s=lab.slow_mib_s))
    await until_copying(reports)

    await lab.restart_driver("host-a")

    assert (await lab.a.get_guest("one")).migrating
    last = await outcome(lab.a.follow_migration("one", limits=MigrationLimits()))
    assert last.phase is MigrationPhase.COMPLETED, last
    assert (await lab.a.get_guest("one")).state is GuestState.ABSENT
    moved = await lab.becomes(lab.b, GuestState.RUNNING)
    assert moved.run_epoch == 2
    # Asked once more, it says what it sees.
    assert (await outcome(lab.a.follow_migration("one", limits=MigrationLimits()))).phase is MigrationPhase.COMPLETED
    assert (await outcome(lab.b.follow_migration("one", limits=MigrationLimits()))).phase is MigrationPhase.FAILED


async def test_guest_runs_on_when_the_destination_loses_power(lab: HypervisorLab) -> None:
    await lab.start(lab.a, guest_spec())
    reports = migrate(lab, limits=CRAWLING)
    await until_copying(reports)

    await lab.power_off("host-b")

    last = await outcome(reports)
    assert last.phase is MigrationPhase.FAILED
    assert last.error
    status = await lab.a.get_guest("one")
    assert (status.state, status.migrating) == (GuestState.RUNNING, False)


async def test_guest_that_does_not_run_cannot_be_migrated(lab: HypervisorLab) -> None:
    with pytest.raises(HypervisorError, match="does not run here"):
        await outcome(migrate(lab))


async def test_guest_paused_by_lost_storage_runs_on_when_it_is_back(lab: HypervisorLab) -> None:
    await lab.start_on_frail_storage(guest_spec())
    await lab.fail_storage()

    paused = await lab.becomes(lab.a, GuestState.PAUSED, within_s=40)

    assert not paused.migrating
    assert await lab.a.paused_by_io_error() == ("one",)
    await lab.restore_storage()
    await lab.a.resume("one")
    await lab.a.resume("one")
    await lab.becomes(lab.a, GuestState.RUNNING)
    await lab.ticks_on("one")
    assert await lab.a.paused_by_io_error() == ()
    assert lab.boots("one") == [1]


@pytest.mark.hosts
async def test_restart_of_libvirtd_disturbs_no_guest_and_events_go_on(real: LibvirtLab) -> None:
    await real.start(real.a, guest_spec())
    process = real.qemu_pid("one")
    async with told(real.a) as statuses:
        await tells(statuses, state=GuestState.RUNNING)
        host = real.hosts["host-a"]
        await host.spawned("libvirtd").process.kill()
        host.libvirt_socket.unlink()  # A killed daemon leaves it, and the next one would seem to be up too early.
        with pytest.raises(HypervisorError):
            await real.a.get_guest("one")
        await host.start_libvirtd()

        await real.becomes(real.a, GuestState.RUNNING)
        assert real.qemu_pid("one") == process
        await real.a.kill("one")
        await tells(statuses, state=GuestState.STOPPED)


@pytest.mark.hosts
async def test_libvirtd_that_hangs_is_an_error_and_not_a_hanging_agent(real: LibvirtLab) -> None:
    await real.start(real.a, guest_spec())
    libvirtd = real.hosts["host-a"].spawned("libvirtd").process
    libvirtd.send(signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        with pytest.raises(HypervisorError):
            await real.a.get_guest("one")
        assert time.monotonic() - began_s < 12
    finally:
        libvirtd.send(signal.SIGCONT)
        # nsenter, its parent, stops and must be continued with it.
        os.kill(_parent(libvirtd.pid), signal.SIGCONT)

    await real.becomes(real.a, GuestState.RUNNING)


@pytest.mark.hosts
async def test_guest_whose_qemu_hangs_can_be_looked_at_and_killed(real: LibvirtLab) -> None:
    await real.start(real.a, guest_spec())
    os.kill(real.qemu_pid("one"), signal.SIGSTOP)
    pressing = [asyncio.create_task(real.a.shut_down("one")) for _ in range(6)]
    await asyncio.wait(pressing, timeout=0.5)

    began_s = time.monotonic()
    assert (await real.a.get_guest("one")).state is GuestState.RUNNING
    assert [each.uid for each in await real.a.list_guests()] == ["one"]
    assert time.monotonic() - began_s < 6
    await real.a.kill("one")

    assert (await real.a.get_guest("one")).stop_cause is StopCause.REQUESTED
    await asyncio.wait(pressing, timeout=40)
    await asyncio.gather(*pressing, return_exceptions=True)


def _async(function: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def call() -> bool:
        return function()

    return call


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
