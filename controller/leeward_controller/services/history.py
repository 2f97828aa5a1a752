"""What an instance has been through."""

from leeward import keys, names
from leeward.errors import Compacted, NotFound
from leeward_controller.domain.cluster import InstanceEvent
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.transitions import Immediate, check_state
from leeward_controller.records import EVENTS, INSTANCES, Records, Stored
from leeward_controller.services.checks import Checks
from leeward_controller.services.paging import (
    Listing,
    PageRequest,
    decode_token,
    encode_token,
    expired_token,
)


class HistoryService:
    """Looks back."""

    def __init__(self, *, records: Records) -> None:
        self._records = records

    async def events(self, parent: str, page: PageRequest) -> Listing[InstanceEvent]:
        """One page of an instance's history, oldest first. Raises InvalidArgument, NotFound, WrongState."""
        checks = Checks()
        checks.parsed(lambda: names.project_instance(parent, field="parent"), ("", ""))
        page.check(checks)
        checks.done()
        instance = await self._instance(parent)
        check_state(instance, Immediate.LIST_EVENTS)
        prefix = keys.event(instance.uid, "")
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
