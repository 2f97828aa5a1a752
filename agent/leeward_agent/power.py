"""Stopping, killing and restarting a guest: observe, act, verify."""

import asyncio
from collections.abc import Callable

from leeward.agent.types import GuestState, GuestStatus, RebootMode
from leeward.clock import Clock
from leeward.errors import FailedPrecondition, HypervisorError, WrongState
from leeward_agent.ports import Hypervisor

Check = Callable[[], None]
"""Called while waiting; raises when the wait must be given up."""

_POLL_S = 0.2
_KILL_TIMEOUT_S = 20.0
_IN_MEMORY = frozenset({GuestState.RUNNING, GuestState.PAUSED})


def in_memory(status: GuestStatus) -> bool:
    """Whether the guest has a process on this host, executing or not."""
    return status.state in _IN_MEMORY


class Power:
    """Acts on guests of one hypervisor. Every wait has a bound."""

    def __init__(self, hypervisor: Hypervisor, *, clock: Clock) -> None:
        self._hypervisor = hypervisor
        self._clock = clock

    async def stop(self, uid: str, *, grace_period_s: float, check: Check) -> GuestStatus:
        """STOPPED or ABSENT afterwards. A paused guest cannot react, and is killed at once.

        Raises HypervisorError, and what `check` raises.
        """
        status = await self._hypervisor.get_guest(uid)
        if status.state is GuestState.RUNNING and grace_period_s > 0:
            await self._hypervisor.shut_down(uid)
            status = await self._until_gone(uid, timeout_s=grace_period_s, check=check)
        if in_memory(status):
            return await self.kill(uid)
        return status

    async def kill(self, uid: str) -> GuestStatus:
        """End it at once, and see that it has ended. Raises HypervisorError."""
        await self._hypervisor.kill(uid)
        status = await self._until_gone(uid, timeout_s=_KILL_TIMEOUT_S, check=_no_check)
        if in_memory(status):
            raise HypervisorError(f"guest {uid} was killed but is still {status.state} after {_KILL_TIMEOUT_S:g} s")
        return status

    async def forget(self, uid: str) -> None:
        """Kill it if it runs, and undefine it. Raises HypervisorError."""
        status = await self._hypervisor.get_guest(uid)
        if in_memory(status):
            status = await self.kill(uid)
        if status.state is not GuestState.ABSENT:
            await self._hypervisor.undefine(uid)

    async def reboot(self, uid: str, mode: RebootMode, *, timeout_s: float, check: Check) -> RebootMode:
        """How it was restarted in the end. Raises WrongState when it does not run, HypervisorError."""
        status = await self._hypervisor.get_guest(uid)
        if not in_memory(status) or status.migrating:
            raise WrongState(f"guest {uid} cannot be rebooted: it is {_story(status)}")
        if mode is RebootMode.SOFT and status.state is GuestState.RUNNING:
            if await self._rebooted(uid, timeout_s=timeout_s, check=check):
                return RebootMode.SOFT
            status = await self._hypervisor.get_guest(uid)
            if not in_memory(status):
                raise FailedPrecondition(f"guest {uid} shut down instead of rebooting: it is {_story(status)}")
        check()
        await self._hypervisor.reboot(uid, RebootMode.HARD)
        if (await self._hypervisor.get_guest(uid)).state is GuestState.PAUSED:
            await self._hypervisor.resume(uid)
        return RebootMode.HARD

    async def _rebooted(self, uid: str, *, timeout_s: float, check: Check) -> bool:
        """Whether the guest restarted itself in time."""
        rebooting = asyncio.create_task(self._hypervisor.reboot(uid, RebootMode.SOFT, timeout_s=timeout_s))
        try:
            while not rebooting.done():
                check()
                await asyncio.wait((rebooting,), timeout=_POLL_S)
            return rebooting.result()
        finally:
            rebooting.cancel()

    async def _until_gone(self, uid: str, *, timeout_s: float, check: Check) -> GuestStatus:
        """The guest once it has no process any more, or as it is after `timeout_s`."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        while True:
            status = await self._hypervisor.get_guest(uid)
            left_s = deadline_s - self._clock.monotonic_s()
            if not in_memory(status) or left_s <= 0:
                return status
            check()
            await self._clock.sleep(min(_POLL_S, left_s))


def _story(status: GuestStatus) -> str:
    return f"{status.state}{', migrating' if status.migrating else ''}"


def _no_check() -> None:
    """For waits that nothing may break off."""
