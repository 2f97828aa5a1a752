"""Live migration through the API: watched, cancelled, carried on by another controller; the guest never notices."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from google.longrunning import operations_pb2
from google.longrunning.operations_pb2 import Operation
from tests.support.hosts import BOOT_S, CALL_S, Guest, Lab, code_of

from leeward.client import metadata_of
from leeward.v1.instance_service_pb2 import RebootMode
from leeward.v1.operation_pb2 import MigrationPhase, OperationMetadata
from leeward.v1.operation_service_pb2 import WatchOperationResponse
from leeward_lab.hosts.waiting import until

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(240)]

# The guest has some 40 MiB to move, so at this rate there is time to watch.
_SLOW_MIB_S = 4


class Watched:
    """An operation that is waited for, and each moment that was told of it, with the time."""

    def __init__(self, lab: Lab, operation: Operation) -> None:
        self.moments: list[tuple[float, OperationMetadata]] = []
        self.ended = asyncio.ensure_future(lab.client.wait(operation, timeout_s=BOOT_S, on_update=self._take))

    def _take(self, update: WatchOperationResponse) -> None:
        self.moments.append((time.monotonic(), OperationMetadata.FromString(update.metadata.SerializeToString())))

    def copying(self) -> list[tuple[float, OperationMetadata]]:
        """The moments at which memory was being copied."""
        copying = MigrationPhase.MIGRATION_PHASE_COPYING
        return [(at_s, told) for at_s, told in self.moments if told.migration.phase == copying]

    async def until_moved(self, mib: int) -> None:
        """Wait until so much has been copied; what the operation ended with, if it ended before."""

        async def there() -> bool:
            if self.ended.done():
                raise AssertionError(f"it ended too early: {self.ended.exception() or self.ended.result()}")
            copied = (told.migration.memory_processed_bytes for _, told in self.copying())
            return max(copied, default=0) >= mib << 20

        await until(there, what=f"{mib} MiB copied", timeout_s=BOOT_S)


@asynccontextmanager
async def watched(lab: Lab, operation: Operation) -> AsyncIterator[Watched]:
    """Watch an operation for the length of a block."""
    watching = Watched(lab, operation)
    try:
        yield watching
    finally:
        watching.ended.cancel()
        await asyncio.gather(watching.ended, return_exceptions=True)


async def test_there_and_back_while_the_guest_writes_on(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    async with watched(lab, await guest.live_migrate("host-b", bandwidth_mib_s=_SLOW_MIB_S)) as there:
        done = metadata_of(await there.ended)
    _check_progress(there)
    assert done.migration.phase == MigrationPhase.MIGRATION_PHASE_COMPLETED
    assert done.migration.downtime.ToMilliseconds() < 5000
    await _check_only_on(guest, "host-b")

    await guest.move("host-a")
    await _check_only_on(guest, "host-a")
    await guest.until_tick(boot=1, more=2)
    guest.check_undisturbed(boots=1)

    await guest.move("host-b")
    assert await guest.reboot(RebootMode.REBOOT_MODE_SOFT) == "SOFT"
    await guest.until_tick(boot=2)
    await _check_only_on(guest, "host-b")
    guest.check_undisturbed(boots=2)


async def test_a_cancelled_migration_leaves_the_guest_where_it_was(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    process = guest.only_process()
    operation = await guest.live_migrate("host-b", bandwidth_mib_s=_SLOW_MIB_S)
    async with watched(lab, operation) as there:
        await there.until_moved(8)
        await lab.client.operations.CancelOperation(
            operations_pb2.CancelOperationRequest(name=operation.name), timeout=CALL_S
        )
        code, error = await code_of(there.ended)
    assert code == "CANCELLED", error
    assert guest.only_process() == process
    assert (await lab.domains())["host-b"] == []
    assert (await lab.node("host-b")).instance_count == 0
    await guest.until_tick(boot=1, more=2)

    await guest.move("host-b")
    await _check_only_on(guest, "host-b")
    await guest.until_tick(boot=1)
    guest.check_undisturbed(boots=1)


async def test_a_migration_outlives_the_controller_that_drives_it(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    operation = await guest.live_migrate("host-b", bandwidth_mib_s=_SLOW_MIB_S)
    async with watched(lab, operation) as there:
        await there.until_moved(4)
        driver = there.moments[-1][1].controller
        killed = _controller_called(lab, driver)
        await lab.cluster.kill(killed, "controller")
        done = metadata_of(await there.ended)
    assert done.migration.phase == MigrationPhase.MIGRATION_PHASE_COMPLETED
    assert {step.controller for step in done.steps} - {driver}, "nobody else took a step"
    await _check_only_on(guest, "host-b")
    await guest.until_tick(boot=1)
    guest.check_undisturbed(boots=1)

    await lab.cluster.start_controller(killed)
    async with lab.client_of(killed) as client:
        await lab.cluster.until_ready(client)
    await guest.stop()
    assert await guest.state() == "STOPPED"


def _check_progress(watching: Watched) -> None:
    """At least four times a second, and figures that only go one way."""
    copying = watching.copying()
    took_s = copying[-1][0] - copying[0][0]
    assert took_s > 2, "it was too fast to say anything"
    assert len(copying) / took_s >= 4, f"{len(copying)} updates in {took_s:.1f} s"
    figures = [told.migration for _, told in copying]
    done = [figure.memory_processed_bytes for figure in figures]
    assert done == sorted(done)
    assert len(set(done)) > took_s * 2, "the figures stood still"
    assert figures[-1].memory_remaining_bytes < figures[0].memory_total_bytes
    limit = _SLOW_MIB_S << 20
    assert max(figure.throughput_bytes_per_second for figure in figures) < 4 * limit


async def _check_only_on(guest: Guest, host: str) -> None:
    """It runs there and nowhere else, and its host is told of and charged for it."""
    lab = guest.lab
    assert await guest.host() == guest.only_process().host == host
    domains = {name: len(found) for name, found in (await lab.domains()).items()}
    assert domains == {name: int(name == host) for name in domains}

    async def charged() -> bool:
        # What a node holds is answered from a replica's own picture, which follows the store.
        return {name: (await lab.node(name)).instance_count for name in domains} == domains

    await until(charged, what=f"{host} alone charged for it", timeout_s=CALL_S)


def _controller_called(lab: Lab, controller: str) -> str:
    """The host of the controller with that id, which its log tells."""
    for name in lab.cluster.shape.controller_names:
        if controller in lab.host(name).spawned("controller").log.read_text(errors="replace"):
            return name
    raise AssertionError(f"no controller's log speaks of {controller}")
