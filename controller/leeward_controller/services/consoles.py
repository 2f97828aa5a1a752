"""Serial consoles: what a guest wrote, and talking to it."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from leeward import keys, names
from leeward.agent.api import AgentApi
from leeward.agent.types import ConsoleChunk
from leeward.errors import AgentUnavailable, Draining, NotFound
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.transitions import Immediate, check_lock, check_node, check_state
from leeward_controller.ports import Agents
from leeward_controller.records import INSTANCES, Records
from leeward_controller.services.checks import Checks
from leeward_controller.services.drain import Drain
from leeward_controller.view import ClusterView

MAX_CONSOLE_BYTES = 1_048_576
DEFAULT_CONSOLE_BYTES = 65_536


class Consoles:
    """The consoles of all instances, through the agents of the nodes that they are on."""

    def __init__(self, *, records: Records, view: ClusterView, agents: Agents, drain: Drain) -> None:
        self._records = records
        self._view = view
        self._agents = agents
        self._drain = drain

    async def log(self, name: str, *, offset: int, limit_bytes: int) -> ConsoleChunk:
        """Part of the console log. Raises InvalidArgument, NotFound, WrongState, AgentUnavailable."""
        checks = Checks()
        checks.parsed(lambda: names.project_instance(name), ("", ""))
        checks.between(limit_bytes, 0, MAX_CONSOLE_BYTES, "limit_bytes")
        checks.done()
        instance = await self._instance(name)
        check_state(instance, Immediate.GET_CONSOLE_LOG)
        check_node(instance, Immediate.GET_CONSOLE_LOG)
        limit_bytes = limit_bytes or DEFAULT_CONSOLE_BYTES
        return await self._agent(instance).read_console(uid=instance.uid, offset=offset, limit_bytes=limit_bytes)

    async def attach(
        self, name: str, input: AsyncIterator[bytes], *, take_over: bool, admin: bool
    ) -> AsyncGenerator[bytes, None]:
        """What the guest writes from now on, first an empty piece when it is attached; `input` goes to the guest.

        Ends when the guest stops or leaves its node. Raises InvalidArgument, NotFound, Locked, WrongState,
        FailedPrecondition (reason CONSOLE_IN_USE, unless `take_over`), AgentUnavailable, AgentIndefinite, Draining.
        """
        names.project_instance(name)
        instance = await self._instance(name)
        check_lock(instance, Immediate.ATTACH_CONSOLE, admin=admin)
        check_state(instance, Immediate.ATTACH_CONSOLE)
        check_node(instance, Immediate.ATTACH_CONSOLE)
        agent = self._agent(instance)
        attached = agent.attach_console(uid=instance.uid, input=input, take_over=take_over)
        try:
            async with aclosing(attached), aclosing(self._drain.until(attached, revision=int)) as output:
                async for piece in output:
                    yield piece
        except Draining as error:
            raise Draining(
                "this controller is stopping; attach again through another one", retry_after_s=error.retry_after_s
            ) from error

    def _agent(self, instance: Instance) -> AgentApi:
        lease = self._view.leases.get(instance.node)
        if lease is None:
            raise AgentUnavailable(f"nodes/{instance.node} has no heartbeat, so its consoles cannot be reached")
        return self._agents.at(node=instance.node, address=lease.report.address)

    async def _instance(self, name: str) -> Instance:
        stored = await self._records.get(INSTANCES, keys.instance(name))
        if stored is None:
            raise NotFound.named(name)
        return stored.value
