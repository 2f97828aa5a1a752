"""What became of a migration, asked from both ends: what a hypervisor says can be wrong when a connection broke."""

from dataclasses import replace

import structlog

from leeward.agent.types import GuestState, GuestStatus, MigrationPhase, MigrationProgress
from leeward.clock import Clock
from leeward.errors import LeewardError
from leeward_agent.ports import Hypervisor, Peer
from leeward_agent.power import Power, in_memory

_log = structlog.get_logger(__name__)

SETTLE_TIMEOUT_S = 30.0
POLL_S = 0.25


class Outcomes:
    """Settles migrations of one host."""

    def __init__(self, hypervisor: Hypervisor, power: Power, *, clock: Clock) -> None:
        self._hypervisor = hypervisor
        self._power = power
        self._clock = clock

    async def settle(self, uid: str, peer: Peer, outcome: MigrationProgress, *, was: GuestState) -> MigrationProgress:
        """The outcome after looking at both ends.

        Its promise: COMPLETED only when nothing is left here, and the guest never stays paused here while it is known
        that the destination does not have it.
        """
        status = await self._here(uid)
        if outcome.phase is MigrationPhase.COMPLETED:
            await self._power.forget(uid)
            return outcome
        if status.migrating:
            return replace(outcome, phase=MigrationPhase.FAILED, error=_unsettled(outcome, status, None))
        if status.state is GuestState.RUNNING:
            return outcome
        there = await self._ask(peer, uid)
        if there is not None and there.state is GuestState.RUNNING and not there.migrating:
            await self._power.forget(uid)
            return replace(
                outcome,
                phase=MigrationPhase.COMPLETED,
                error="",
                decision="the connection broke in the last step, and the guest was found running on the destination",
            )
        if there is not None and there.state is GuestState.STOPPED and there.run_epoch >= status.run_epoch:
            # It ran there and has ended since. The memory that is left here is older than its disk.
            await self._power.forget(uid)
            return replace(
                outcome, phase=MigrationPhase.COMPLETED, error="", decision="it arrived, and has ended since"
            )
        if there is not None and not in_memory(there) and status.state is GuestState.PAUSED:
            if was is GuestState.RUNNING:
                await self._hypervisor.resume(uid)
            return outcome
        return replace(outcome, phase=MigrationPhase.FAILED, error=_unsettled(outcome, status, there))

    async def _here(self, uid: str) -> GuestStatus:
        """The guest as this host has it, once it does not migrate any more, or as it is after a while."""
        deadline_s = self._clock.monotonic_s() + SETTLE_TIMEOUT_S
        while (status := await self._hypervisor.get_guest(uid)).migrating:
            if self._clock.monotonic_s() >= deadline_s:
                break
            await self._clock.sleep(POLL_S)
        return status

    async def _ask(self, peer: Peer, uid: str) -> GuestStatus | None:
        """The guest as the destination has it, or None when it does not answer, or does not settle, in time."""
        deadline_s = self._clock.monotonic_s() + SETTLE_TIMEOUT_S
        told = ""
        while True:
            try:
                status = await peer.get_guest(uid=uid)
            except LeewardError as error:
                if error.message != told:
                    told = error.message
                    _log.warning("the destination of a migration does not answer", uid=uid, error=told)
            else:
                if not status.migrating and status.state is not GuestState.PAUSED:
                    return status
            if self._clock.monotonic_s() >= deadline_s:
                return None
            await self._clock.sleep(POLL_S)


def _unsettled(outcome: MigrationProgress, here: GuestStatus, there: GuestStatus | None) -> str:
    other = "is not known" if there is None else f"is {there.state}"
    return (
        f"{outcome.error or 'the migration broke off'}; the guest is {here.state} here and {other} on the destination"
    )
