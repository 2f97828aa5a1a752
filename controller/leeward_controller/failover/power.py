"""Cutting the power of nodes that look dead, at a deliberate pace, and what came of it in words."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from leeward.clock import Clock
from leeward.errors import LeewardError
from leeward_controller.ports import Fence
from leeward_controller.view import ClusterView

log = structlog.get_logger()

FIRST_RETRY_S = 5.0
LAST_RETRY_S = 60.0

RecordOff = Callable[[str, str, str], Awaitable[None]]
"""Persists that a boot of a node (the first two) was powered off, with the evidence."""


@dataclass(slots=True)
class _Device:
    """What is going on with one node's device since its heartbeat was lost."""

    task: asyncio.Task[None] | None = None
    not_before_s: float = 0.0
    failures: int = 0
    trouble: str = ""


class PowerCuts:
    """The fence devices during one term of leadership.

    Each attempt is a task of its own, so a device that hangs holds up no other proof. One that failed is asked again
    after `FIRST_RETRY_S`, and twice as long each time up to `LAST_RETRY_S`: some lock the account of who is too eager
    with a wrong password. A node whose heartbeat is back begins anew.
    """

    def __init__(self, *, fence: Fence, view: ClusterView, clock: Clock, record_off: RecordOff) -> None:
        """`record_off` raises LeewardError where the proof could not be stored."""
        self._fence = fence
        self._view = view
        self._clock = clock
        self._record_off = record_off
        self._devices: dict[str, _Device] = {}

    def covers(self, node_id: str) -> bool:
        """Whether a fence device is configured for the node."""
        return self._fence.covers(node_id)

    def is_busy(self, node_id: str) -> bool:
        """Whether its device is being asked now, or it is too early to ask it again."""
        device = self._device(node_id)
        return device is not None and (device.task is not None or self._clock.monotonic_s() < device.not_before_s)

    def trouble(self, node_id: str) -> str:
        """Why its power could not be cut the last time; empty when that was not tried, or went well."""
        device = self._device(node_id)
        return device.trouble if device is not None else ""

    def begin(self, node_id: str, boot_id: str) -> None:
        """Ask the device, in the background."""
        device = self._devices.setdefault(node_id, _Device())
        device.task = asyncio.ensure_future(self._cut(device, node_id, boot_id))

    async def close(self) -> None:
        """Let go of the devices that are being asked: only a leader may cut power."""
        tasks = [device.task for device in self._devices.values() if device.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _device(self, node_id: str) -> _Device | None:
        device = self._devices.get(node_id)
        if device is not None and device.task is None and node_id in self._view.leases:
            del self._devices[node_id]
            return None
        return device

    async def _cut(self, device: _Device, node_id: str, boot_id: str) -> None:
        trouble = "it ended unexpectedly, as the leader's log tells"
        try:
            trouble = await self._cut_and_record(node_id, boot_id)
        finally:
            device.task = None
            device.trouble = trouble
            device.failures += 1 if trouble else 0
            # Also when it went well: what was recorded is seen a little later.
            pause_s = min(LAST_RETRY_S, FIRST_RETRY_S * 2 ** max(0, device.failures - 1))
            device.not_before_s = self._clock.monotonic_s() + pause_s

    async def _cut_and_record(self, node_id: str, boot_id: str) -> str:
        outcome = await self._fence.power_off(node_id)
        log.warning("failover.power_off", node=node_id, off=outcome.confirmed_off, evidence=outcome.evidence)
        if not outcome.confirmed_off:
            return outcome.evidence
        try:
            await self._record_off(node_id, boot_id, outcome.evidence)
        except LeewardError as error:
            log.warning("failover.proof_not_recorded", node=node_id, error=error.message)
            return f"{outcome.evidence}, but that could not be recorded: {error.message}"
        return ""
