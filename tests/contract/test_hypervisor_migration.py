"""Live migration at its limits, in the simulation and in libvirt: disks that go along, guests that write too fast."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.hypervisors import (
    HypervisorLab,
    LibvirtLab,
    SimulatedLab,
    guest_spec,
    libvirt_lab,
    simulated_lab,
    until,
)

from leeward.agent.types import Escalation, GuestSpec, GuestState, MigrationLimits, MigrationPhase, MigrationProgress
from leeward.errors import FailedPrecondition
from leeward_agent.hypervisors.simulated.files import read_record
from leeward_agent.ports import FolderMove
from leeward_lab.guest.commands import run_tool
from leeward_lab.guest.record import read_guest_record, ticks_in
from leeward_lab.guest_image import build_guest_image, default_cache_dir

SLOW_MIB_S = 24
CHURN_MIB = 32


@pytest.fixture(params=["simulated", pytest.param("libvirt", marks=pytest.mark.hosts)])
async def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HypervisorLab]:
    directory = tmp_path_factory.mktemp("hm")
    make = simulated_lab if request.param == "simulated" else libvirt_lab
    async with make(directory) as made:
        yield made


async def boot_busy(lab: HypervisorLab) -> GuestSpec:
    """A guest that changes its memory faster than `SLOW_MIB_S`."""
    if isinstance(lab, SimulatedLab):
        spec = replace(guest_spec(run_epoch=1), memory_mib=16)
        lab.world.hosts["host-a"].dirty_mib_s["one"] = 4 * SLOW_MIB_S
        await lab.boot(lab.a, spec)
        return spec
    spec = replace(guest_spec(run_epoch=1), memory_mib=160)
    build_guest_image(lab.disk("one"), cache_dir=default_cache_dir(), churn_mib=CHURN_MIB)
    await lab.boot(lab.a, spec)

    async def churns() -> bool:
        return "churn mib" in lab.console("one")

    await until(churns, within_s=40, what="the guest changes its memory")
    return spec


def migrate(
    lab: HypervisorLab, spec: GuestSpec, limits: MigrationLimits, *, there: Path | None = None
) -> AsyncIterator[MigrationProgress]:
    here = lab.disk("one").parent
    return lab.a.migrate(
        replace(spec, run_epoch=2),
        destination="host-b",
        transport=lab.transport("host-b"),
        folders=FolderMove(here=here, there=there or here),
        limits=limits,
    )


async def only_on_host_b(lab: HypervisorLab) -> None:
    assert (await lab.a.get_guest("one")).state is GuestState.ABSENT
    there = await lab.becomes(lab.b, GuestState.RUNNING)
    assert (there.run_epoch, there.migrating) == (2, False)
    await lab.ticks_on("one")
    assert lab.boots("one") == [1], "the guest must not notice"


@pytest.mark.parametrize("escalation", [Escalation.POST_COPY, Escalation.PAUSE, Escalation.AUTO_CONVERGE])
async def test_a_guest_that_cannot_be_kept_up_with_arrives_by_escalation(
    lab: HypervisorLab, escalation: Escalation
) -> None:
    spec = await boot_busy(lab)
    budget_ms = 300
    limits = MigrationLimits(
        bandwidth_mib_s=SLOW_MIB_S, max_downtime_ms=budget_ms, escalation=escalation, timeout_s=120
    )

    reports = [progress async for progress in migrate(lab, spec, limits)]

    last = reports[-1]
    assert last.phase is MigrationPhase.COMPLETED, last
    decisions = list(dict.fromkeys(each.decision for each in reports))
    assert any("brought no progress" in each and "MiB/s" in each for each in decisions), decisions
    match escalation:
        case Escalation.POST_COPY:
            assert last.decision.startswith("post-copy: ")
            assert any(each.phase is MigrationPhase.SWITCHING for each in reports)
            assert last.downtime_ms <= 2 * budget_ms
        case Escalation.PAUSE:
            assert last.decision.startswith("pause: ")
        case _:
            assert any("slowed by" in each for each in decisions), decisions
            assert last.downtime_ms <= 2 * budget_ms
    await only_on_host_b(lab)


@pytest.mark.parametrize("lab", ["simulated"], indirect=True)  # What libvirt does then, other tests show.
async def test_without_leave_to_escalate_it_copies_until_its_time_is_over(lab: HypervisorLab) -> None:
    spec = await boot_busy(lab)
    limits = MigrationLimits(bandwidth_mib_s=SLOW_MIB_S, escalation=Escalation.NONE, timeout_s=5)

    reports = [progress async for progress in migrate(lab, spec, limits)]

    assert reports[-1].phase is MigrationPhase.FAILED
    assert "not done within 5 s" in reports[-1].error
    assert any("nothing may be done about it" in each.decision for each in reports)
    assert not any("slowed" in each.decision for each in reports)
    assert (await lab.a.get_guest("one")).state is GuestState.RUNNING
    await lab.becomes(lab.b, GuestState.ABSENT)
    await lab.ticks_on("one")


async def test_it_can_be_cancelled_up_to_the_commit_point_and_then_says_why_not(lab: HypervisorLab) -> None:
    spec = await boot_busy(lab)
    limits = MigrationLimits(bandwidth_mib_s=8, escalation=Escalation.POST_COPY, timeout_s=90)
    refused = ""

    async for progress in migrate(lab, spec, limits):
        if progress.phase is MigrationPhase.SWITCHING and not refused:
            with pytest.raises(FailedPrecondition, match="post-copy") as caught:
                await lab.a.cancel_migration("one")
            refused = caught.value.specific_reason
            assert caught.value.metadata == {"phase": "SWITCHING"}
        last = progress

    assert refused == "MIGRATION_COMMITTED"
    assert last.phase is MigrationPhase.COMPLETED, last
    await only_on_host_b(lab)


async def test_a_halted_guest_runs_on_when_its_migration_is_cancelled(lab: HypervisorLab) -> None:
    spec = await boot_busy(lab)
    limits = MigrationLimits(bandwidth_mib_s=8, escalation=Escalation.PAUSE, timeout_s=90)
    halted = False

    async for progress in migrate(lab, spec, limits):
        if progress.decision.startswith("pause: ") and not halted:
            halted = True
            await lab.a.cancel_migration("one")
        last = progress

    assert halted
    assert last.phase is MigrationPhase.CANCELLED, last
    status = await lab.a.get_guest("one")
    assert (status.state, status.migrating, status.run_epoch) == (GuestState.RUNNING, False, 1)
    await lab.becomes(lab.b, GuestState.ABSENT)
    await lab.ticks_on("one")


async def test_disks_go_along_where_no_storage_is_shared(lab: HypervisorLab) -> None:
    there = lab.directory / "pool-b"
    there.mkdir()
    spec = guest_spec(run_epoch=1)
    await lab.boot(lab.a, spec)
    if isinstance(lab, LibvirtLab):
        size = str(_virtual_size_bytes(lab.disk("one")))
        run_tool(["qemu-img", "create", "-q", "-f", "qcow2", there / "one.qcow2", size], timeout_s=20)
    limits = MigrationLimits(bandwidth_mib_s=3 * lab.slow_mib_s, copies_disks=True)

    reports = [progress async for progress in migrate(lab, spec, limits, there=there)]

    assert reports[-1].phase is MigrationPhase.COMPLETED, reports[-1]
    assert max(each.disk_total_bytes for each in reports) > 0
    assert reports[-1].disk_remaining_bytes == 0
    await only_on_host_b(lab)
    # The source's disk is only in the way now, and the guest goes on counting where it was.
    lab.disk("one").unlink()
    await lab.b.kill("one")
    told = ticks_in(lab.console("one"))[-1].line
    assert _lines(lab, there / "one.qcow2") >= told > 0


def _lines(lab: HypervisorLab, disk: Path) -> int:
    if isinstance(lab, SimulatedLab):
        return read_record(disk).lines
    record = read_guest_record(disk)
    assert record.missing() == ()
    return record.lines


def _virtual_size_bytes(disk: Path) -> int:
    shown = run_tool(["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", disk], timeout_s=20)
    return int(json.loads(shown)["virtual-size"])
