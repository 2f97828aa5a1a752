"""What an instance has been through: its console log and its events."""

from leeward import keys, names
from leeward.agent.types import ConsoleChunk
from leeward.errors import AgentUnavailable, Compacted, FailedPrecondition, NotFound, Violation
from leeward_controller.domain.cluster import InstanceEvent
from leeward_controller.domain.instance import Instance
from leeward_controller.ports import Agents
from leeward_controller.records import EVENTS, INSTANCES, Records, Stored
from leeward_controller.services.checks import Checks
from leeward_controller.services.paging import (
    Listing,
    PageRequest,
    decode_token,
    encode_token,
    expired_token,
)
from leeward_controller.view import ClusterView

MAX_CONSOLE_BYTES = 1_048_576
DEFAULT_CONSOLE_BYTES = 65_536


class HistoryService:
    """Looks back."""

    def __init__(self, *, records: Records, view: ClusterView, agents: Agents) -> None:
        self._records = records
        self._view = view
        self._agents = agents

    async def console_log(self, name: str, *, offset: int, limit_bytes: int) -> ConsoleChunk:
        """Part of the serial console log. Raises InvalidArgument, NotFound, FailedPrecondition, AgentUnavailable."""
        checks = Checks()
        checks.parsed(lambda: names.project_instance(name), ("", ""))
        checks.between(limit_bytes, 0, MAX_CONSOLE_BYTES, "limit_bytes")
        checks.done()
        instance = await self._instance(name)
        if not instance.node:
            raise without_node(instance)
        lease = self._view.leases.get(instance.node)
        if lease is None:
            raise AgentUnavailable(f"nodes/{instance.node} has no heartbeat, so its console logs cannot be read")
        agent = self._agents.at(node=instance.node, address=lease.report.address)
        limit_bytes = limit_bytes or DEFAULT_CONSOLE_BYTES
        return await agent.read_console(uid=instance.uid, offset=offset, limit_bytes=limit_bytes)

    async def events(self, parent: str, page: PageRequest) -> Listing[InstanceEvent]:
        """One page of an instance's history, oldest first. Raises InvalidArgument, NotFound."""
        checks = Checks()
        checks.parsed(lambda: names.project_instance(parent, field="parent"), ("", ""))
        page.check(checks)
        checks.done()
        prefix = keys.event((await self._instance(parent)).uid, "")
        revision, last = decode_token(page.page_token, prefix)
        try:
            found = await self._records.list(EVENTS, prefix=prefix, revision=revision)
        except Compacted as error:
            raise expired_token() from error
        # Their keys have no order in time, and one instance has few enough of them to be sorted here.
        ordered = [item for item in sorted(found.items, key=_position) if _position(item) > last]
        shown, rest = ordered[: page.limit], ordered[page.limit :]
        token = encode_token(prefix, found.revision, _position(shown[-1])) if rest else ""
        return Listing(tuple(shown), token, found.revision)

    async def _instance(self, name: str) -> Instance:
        stored = await self._records.get(INSTANCES, keys.instance(name))
        if stored is None:
            raise NotFound.named(name)
        return stored.value


def _position(stored: Stored[InstanceEvent]) -> str:
    """Where an event stands: by its beginning, in text that sorts as times do."""
    return f"{stored.value.start_time:%Y%m%dT%H%M%S.%f} {stored.value.operation}"


def without_node(instance: Instance) -> FailedPrecondition:
    """What to raise for an instance that must be on a node."""
    return FailedPrecondition(
        f"{instance.name} is on no node",
        violations=[Violation("NODE", instance.name, "is on no node; it must be on one")],
        resource=instance.name,
    )
