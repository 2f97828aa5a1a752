"""Keeps the record true to what really runs, for guests that stop or vanish by themselves.

Nova calls this the power state sync. What an operation is doing is never interfered with. Otherwise:

| instance | its guest shut itself down | it was killed or crashed, or its host was rebooted |
|---|---|---|
| ACTIVE | STOPPED | rebooted where it is: ACTIVE |
| PAUSED | STOPPED (it did so in the moment of being paused) | started again with its processors halted |
| RESIZED | stays RESIZED; to confirm or to revert leads to STOPPED | started again with its new size |
| RESCUED | stays RESCUED, and down until it is unrescued | booted again from its rescue image |
| SOFT_DELETED | not meant to run, and ended where it does | likewise |
| others | not meant to run | not meant to run |

A guest whose instance was deleted while its host was away is ended, and what a host knows of guests that have left it
is forgotten; a node in quarantine only ends them, and keeps the rest until it is released. A guest that no record ever
spoke of is left to an audit: it may be that the records are older than the guest.
"""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import structlog

from leeward import keys
from leeward.agent.api import AgentApi
from leeward.agent.types import Caller, GuestState, GuestStatus, RebootMode, StopCause
from leeward.clock import Clock
from leeward.errors import AgentUnavailable, Conflict, LeewardError
from leeward_controller.domain.instance import Instance, InstanceState
from leeward_controller.domain.node import NodeCondition
from leeward_controller.domain.operation import Arguments, OperationType, PlainArguments, RebootArguments
from leeward_controller.operations.context import Surroundings
from leeward_controller.operations.submit import Requester, Submitter
from leeward_controller.records import EVENTS, INSTANCES, Commit, Stored

log = structlog.get_logger()

_REQUESTER = Requester(principal="leeward:sync", admin=True)
_LOOK_AGAIN_S = 15.0
_RESTART_PAUSE_S = 10.0
_ALIVE = frozenset({NodeCondition.READY, NodeCondition.CORDONED, NodeCondition.DRAINING, NodeCondition.QUARANTINED})


class GuestSync:
    """Follows the guests of every node that is alive, during one term of leadership."""

    def __init__(self, *, surroundings: Surroundings, submitter: Submitter, leader_epoch: int) -> None:
        self._surroundings = surroundings
        self._view = surroundings.view
        self._clock: Clock = surroundings.clock
        self._submitter = submitter
        self._leader_epoch = leader_epoch
        self._followers: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._not_before_s: dict[str, float] = {}

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            while True:
                self._tend_followers()
                await self._clock.sleep(0.5)
        finally:
            for task in self._followers.values():
                task.cancel()
            await asyncio.gather(*self._followers.values(), return_exceptions=True)

    def _tend_followers(self) -> None:
        wanted = dict.fromkeys(
            (node_id, lease.report.agent_id)
            for node_id, lease in self._view.leases.items()
            if (stored := self._view.nodes.get(keys.node(node_id))) is not None
            and stored.value.condition in _ALIVE
            and stored.value.report.boot_id == lease.report.boot_id
        )
        for key in [key for key in self._followers if key not in wanted]:
            self._followers.pop(key).cancel()
        for key in wanted:
            if key not in self._followers or self._followers[key].done():
                self._followers[key] = asyncio.ensure_future(self._follow(key[0]))

    async def _follow(self, node_id: str) -> None:
        lease = self._view.leases.get(node_id)
        if lease is None:
            return
        agent = self._surroundings.agents.at(node=node_id, address=lease.report.address)
        for stored in self._view.instances_on(node_id):
            # What failed with an agent before this one, or before the host was rebooted, is tried anew at once.
            self._not_before_s.pop(stored.value.uid, None)
        look = asyncio.ensure_future(self._look_again_and_again(node_id))
        try:
            async with aclosing(agent.watch_guests()) as statuses:
                async for status in statuses:
                    await self._judge(node_id, status)
        except LeewardError as error:
            log.info("sync.stream_ended", node=node_id, why=error.message)
            await self._clock.sleep(1.0)
        finally:
            look.cancel()
            await asyncio.gather(look, return_exceptions=True)

    async def _look_again_and_again(self, node_id: str) -> None:
        """Events tell what changed; this finds guests that the host knows nothing of (it was rebooted)."""
        while True:
            try:
                await self._look(node_id)
            except LeewardError as error:
                log.info("sync.look_failed", node=node_id, why=error.message)
            await self._clock.sleep(_LOOK_AGAIN_S)

    async def _look(self, node_id: str) -> None:
        lease = self._view.leases.get(node_id)
        if lease is None:
            raise AgentUnavailable(f"nodes/{node_id} has no heartbeat")
        agent = self._surroundings.agents.at(node=node_id, address=lease.report.address)
        known = {status.uid: status for status in await agent.list_guests()}
        for stored in self._view.instances_on(node_id):
            instance = stored.value
            absent = GuestStatus(instance.uid, instance.name, GuestState.ABSENT)
            await self._judge(node_id, known.get(instance.uid, absent))
            if instance.uid in known and instance.state is InstanceState.SOFT_DELETED:
                await self._end_deleted(agent, stored, known[instance.uid])
        here = {stored.value.uid for stored in self._view.instances_on(node_id)}
        recorded = {stored.value.uid for stored in self._view.instances.values()}
        keeps = self._keeps_leftovers(node_id)
        for status in known.values():
            if status.uid not in recorded:
                await self._end_orphan(agent, status, keeps=keeps)
            elif status.uid not in here and status.state is GuestState.STOPPED and not keeps:
                await self._forget_left(agent, status, node_id)

    async def _end_deleted(self, agent: AgentApi, recorded: Stored[Instance], status: GuestStatus) -> None:
        """End a guest that ran on, on a disk of its host's own, while that was fenced and its instance was deleted."""
        if status.state not in (GuestState.RUNNING, GuestState.PAUSED):
            return
        stored = await self._surroundings.records.get(INSTANCES, recorded.key)
        if stored is None or stored.value.state is not InstanceState.SOFT_DELETED or stored.value.current_operation:
            return
        log.warning("sync.deleted_ended", instance=stored.value.name, state=status.state)
        caller = Caller(_REQUESTER.principal, "end_deleted", stored.revision)
        await agent.stop_guest(caller, uid=status.uid, grace_period_s=0.0)

    def _keeps_leftovers(self, node_id: str) -> bool:
        """Whether what a node has of guests that left it is kept: while it is in quarantine."""
        stored = self._view.nodes.get(keys.node(node_id))
        return stored is not None and stored.value.condition is NodeCondition.QUARANTINED

    async def _forget_left(self, agent: AgentApi, status: GuestStatus, node_id: str) -> None:
        """Have a guest forgotten that has left this host, which could not be reached when that was to be done."""
        stored = await self._surroundings.records.get(INSTANCES, keys.instance(status.name))
        if stored is None or stored.value.uid != status.uid:
            return
        if stored.value.node != node_id and not stored.value.current_operation:
            caller = Caller(_REQUESTER.principal, "forget_left", stored.revision)
            await agent.remove_guest(caller, uid=status.uid)

    async def _end_orphan(self, agent: AgentApi, status: GuestStatus, *, keeps: bool) -> None:
        """End a guest whose instance was deleted while its host could not be reached. Its disks are left to an audit.

        Its history tells that it was: an instance that is gone never comes back. A node that `keeps` its leftovers goes
        on knowing it.
        """
        if keeps and status.state is GuestState.STOPPED:
            return
        records = self._surroundings.records
        there = await records.get(INSTANCES, keys.instance(status.name))
        if there is not None and there.value.uid == status.uid:
            return  # The view lags.
        history = await records.list(EVENTS, prefix=keys.event(status.uid, ""))
        if any(stored.value.type == OperationType.DELETE for stored in history.items):
            log.warning("sync.orphan_ended", uid=status.uid, name=status.name, state=status.state)
            caller = Caller(_REQUESTER.principal, "end_orphan", history.revision)
            if keeps:
                await agent.stop_guest(caller, uid=status.uid, grace_period_s=0.0)
            else:
                await agent.remove_guest(caller, uid=status.uid)

    async def _judge(self, node_id: str, status: GuestStatus) -> None:
        if status.state not in (GuestState.STOPPED, GuestState.ABSENT) or status.stop_cause is StopCause.MIGRATED:
            return
        recorded = next((s for s in self._view.instances_on(node_id) if s.value.uid == status.uid), None)
        if recorded is None or not self._concerns(recorded.value, node_id):
            return
        try:
            await self._mend(node_id, recorded)
        except LeewardError as error:
            log.info("sync.not_mended", instance=recorded.value.name, why=error.message)

    def _concerns(self, instance: Instance, node_id: str) -> bool:
        meant_to_run = instance.wanted_guest is not GuestState.STOPPED and not instance.current_operation
        due = self._clock.monotonic_s() >= self._not_before_s.get(instance.uid, 0.0)
        return meant_to_run and instance.node == node_id and due

    async def _mend(self, node_id: str, recorded: Stored[Instance]) -> None:
        """Look again at both sides, record first and guest second, then do what is due."""
        stored = await self._surroundings.records.get(INSTANCES, recorded.key)
        lease = self._view.leases.get(node_id)
        if stored is None or lease is None or not self._concerns(stored.value, node_id):
            return
        agent = self._surroundings.agents.at(node=node_id, address=lease.report.address)
        status = await agent.get_guest(uid=stored.value.uid)
        if status.state not in (GuestState.STOPPED, GuestState.ABSENT) or status.stop_cause is StopCause.MIGRATED:
            return
        if status.stop_cause is StopCause.GUEST:
            await self._note_stopped(stored, node_id)
            return
        self._not_before_s[stored.value.uid] = self._clock.monotonic_s() + _RESTART_PAUSE_S
        log.warning("sync.restart", instance=stored.value.name, node=node_id, cause=status.stop_cause)
        wanted, arguments = _restart_of(stored.value)
        await self._submitter.submit(stored, wanted, arguments, _REQUESTER, leader_epoch=self._leader_epoch)

    async def _note_stopped(self, stored: Stored[Instance], node_id: str) -> None:
        """Record that a guest shut itself down."""
        changed = _shut_down(stored.value)
        if changed == stored.value:
            return
        changed = replace(changed, update_time=self._clock.now())
        try:
            await self._surroundings.records.commit(
                Commit().replace(stored, changed).alive(keys.LEADER, self._leader_epoch)
            )
        except Conflict:
            return  # An operation was faster.
        log.info("sync.stopped", instance=stored.value.name, node=node_id)


def _shut_down(instance: Instance) -> Instance:
    """An instance whose guest shut itself down."""
    match instance.state:
        case InstanceState.ACTIVE | InstanceState.PAUSED:
            return replace(instance, state=InstanceState.STOPPED)
        case InstanceState.RESIZED if instance.resize is not None:
            return replace(instance, resize=replace(instance.resize, state_before=InstanceState.STOPPED))
    return instance


def _restart_of(instance: Instance) -> tuple[OperationType, Arguments]:
    """What has the guest again as it was."""
    if instance.state is InstanceState.ACTIVE:
        return OperationType.REBOOT, RebootArguments(mode=RebootMode.HARD)
    return OperationType.RECOVER, PlainArguments()
