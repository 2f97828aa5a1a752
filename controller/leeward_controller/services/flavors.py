"""Flavors: made by operators, never changed."""

from dataclasses import dataclass, replace

from leeward import keys, names
from leeward.clock import Clock, Ids
from leeward.errors import AlreadyExists, Conflict, NotFound
from leeward_controller.domain.catalog import Flavor
from leeward_controller.records import FLAVORS, Commit, Records, Stored
from leeward_controller.services.checks import Checks, check_etag
from leeward_controller.services.paging import Listing, PageRequest, list_page

MAX_VCPUS = 512
MIN_MEMORY_MIB = 16
MAX_MEMORY_MIB = 16_777_216
MAX_DISK_GIB = 65_536


@dataclass(frozen=True, slots=True)
class NewFlavor:
    """A flavor to make, as it was asked for."""

    flavor_id: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    request_id: str = ""
    validate_only: bool = False

    def check(self) -> None:
        """Raises InvalidArgument with every wrong field."""
        checks = Checks()
        checks.parsed(lambda: names.check_id(self.flavor_id, field="flavor_id"), "")
        checks.between(self.vcpus, 1, MAX_VCPUS, "flavor.vcpus")
        checks.between(self.memory_mib, MIN_MEMORY_MIB, MAX_MEMORY_MIB, "flavor.memory_mib", " MiB")
        checks.between(self.disk_gib, 1, MAX_DISK_GIB, "flavor.disk_gib", " GiB")
        checks.request_id(self.request_id)
        checks.done()


class FlavorService:
    """The flavors."""

    def __init__(self, *, records: Records, clock: Clock, ids: Ids) -> None:
        self._records = records
        self._clock = clock
        self._ids = ids

    async def create(self, new: NewFlavor) -> Stored[Flavor]:
        """Make a flavor. The same request again answers what it made.

        Raises InvalidArgument, AlreadyExists.
        """
        new.check()
        flavor = Flavor(
            flavor=new.flavor_id,
            uid=self._ids.new(),
            vcpus=new.vcpus,
            memory_mib=new.memory_mib,
            disk_gib=new.disk_gib,
            create_time=self._clock.now(),
            request_id=new.request_id,
        )
        key = keys.flavor(new.flavor_id)
        if new.validate_only:
            return await self._there_already(key, flavor) or Stored(key, flavor, 0, 0)
        try:
            revision = await self._records.commit(Commit().create(key, flavor))
        except Conflict:
            there = await self._there_already(key, flavor)
            if there is None:
                raise
            return there
        return Stored(key, flavor, revision, revision)

    async def get(self, name: str) -> Stored[Flavor]:
        """One flavor. Raises InvalidArgument, NotFound."""
        key = keys.flavor(names.flavor(name))
        stored = await self._records.get(FLAVORS, key)
        if stored is None:
            raise NotFound.named(name)
        return stored

    async def list(self, page: PageRequest) -> Listing[Flavor]:
        """One page of all flavors, by name. Raises InvalidArgument."""
        checks = Checks()
        page.check(checks)
        checks.done()
        return await list_page(self._records, FLAVORS, page)

    async def delete(self, name: str, *, etag: str = "", validate_only: bool = False) -> None:
        """Remove a flavor; instances keep what they have. Raises InvalidArgument, NotFound, Conflict (etag)."""
        stored = await self.get(name)
        check_etag(stored, etag, name=name)
        if not validate_only:
            await self._records.commit(Commit().remove(stored))

    async def _there_already(self, key: str, wanted: Flavor) -> Stored[Flavor] | None:
        """The flavor at `key` when this very request made it. Raises AlreadyExists when another did."""
        there = await self._records.get(FLAVORS, key)
        if there is None:
            return None
        same = replace(wanted, uid=there.value.uid, create_time=there.value.create_time)
        if not wanted.request_id or there.value != same:
            raise AlreadyExists.named(wanted.name)
        return there
