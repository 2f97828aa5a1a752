"""Where an image is fetched from when the pool that was chosen does not have it."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from leeward.agent.types import (
    DiskFormat,
    HeldImage,
    Inventory,
    NodeReport,
    PoolInventory,
    PoolKind,
    PoolReport,
    PoolSource,
)
from leeward.errors import AgentUnavailable, NotFound
from leeward_controller.domain.catalog import Image
from leeward_controller.domain.instance import Instance, InstanceState, Resources
from leeward_controller.operations.images import ensure_image
from leeward_controller.records import Page, Stored
from leeward_controller.view import Lease

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DIGEST = "d" * 64
IMAGE = Image("projects/p/images/i", "i", DIGEST, DiskFormat.RAW, 77, 100, ("home",), NOW, "me")
INSTANCE = Instance(
    name="projects/p/instances/vm",
    uid="vm",
    state=InstanceState.BUILDING,
    flavor="small",
    resources=Resources(1, 512, 1),
    image=IMAGE.name,
    image_digest=DIGEST,
    image_format=DiskFormat.RAW,
    pool_id="here",
    nics=(),
    create_time=NOW,
    update_time=NOW,
    created_by="me",
    node="target",
)


def lease(node: str, *pools: str) -> Lease:
    reports = tuple(PoolReport(pool, PoolKind.DIRECTORY, 10, 10) for pool in pools)
    report = NodeReport(node, "b", "a", f"{node}:1", 1, 1, reports, "simulated", "1", "1", True, 5.0, 1.0)
    return Lease(report, 1, 1)


@dataclass
class World:
    """What `ensure_image` sees, and what it asks of agents."""

    images: list[Image] = field(default_factory=lambda: [IMAGE])
    others: list[Instance] = field(default_factory=list)
    leases: dict[str, Lease] = field(
        default_factory=lambda: {
            "a": lease("a", "home"),
            "b": lease("b", "home", "used"),
            "target": lease("target", "here"),
        }
    )
    broken: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, int, PoolSource]] = field(default_factory=list)

    async def ensure(self, *, digest: str = DIGEST) -> None:
        records = SimpleNamespace(get=self._get, list=self._list)
        view = SimpleNamespace(
            leases=self.leases,
            instances={each.name: Stored(each.name, each, 1, 1) for each in [INSTANCE, *self.others]},
        )
        context: Any = SimpleNamespace(
            instance=INSTANCE, surroundings=SimpleNamespace(records=records), view=view, agent=self._agent
        )
        await ensure_image(context, node="target", pool_id="here", digest=digest, format=DiskFormat.RAW)

    @property
    def sources(self) -> list[tuple[str, str]]:
        return [(source.node, source.pool_id) for _, _, _, source in self.asked]

    async def _get(self, _: object, key: str) -> Stored[Image] | None:
        return next((Stored(key, image, 1, 1) for image in self.images if key.endswith(image.name)), None)

    async def _list(self, _: object) -> Page[Image]:
        return Page(tuple(Stored(image.name, image, 1, 1) for image in self.images), 1, False)

    def _agent(self, node: str) -> Any:
        async def fetch(*, pool_id: str, digest: str, format: DiskFormat, size_bytes: int, source: PoolSource) -> None:
            self.asked.append((node, pool_id, size_bytes, source))
            if source.node in self.broken:
                raise AgentUnavailable(f"{source.node} is away")

        async def inventory() -> Inventory:
            held = PoolInventory("used", (HeldImage("e" * 64, 55, (), 0.0),), ())
            return Inventory((held,), (), (), ())

        return SimpleNamespace(fetch_image=fetch, take_inventory=inventory)


async def test_an_image_is_fetched_from_its_pool_through_whatever_node_answers() -> None:
    world = World(broken={"a"})
    await world.ensure()
    assert world.asked == [
        ("target", "here", 77, PoolSource("a", "a:1", "home")),
        ("target", "here", 77, PoolSource("b", "b:1", "home")),
    ]


async def test_what_is_recorded_to_be_there_is_not_fetched() -> None:
    world = World(images=[replace(IMAGE, pool_ids=("home", "here"))])
    await world.ensure()
    assert world.asked == []


async def test_an_image_without_a_record_is_found_where_disks_are_made_of_it() -> None:
    other = replace(INSTANCE, name="projects/p/instances/other", node="b", pool_id="used", image_digest="e" * 64)
    world = World(others=[other])
    await world.ensure(digest="e" * 64)
    assert world.asked == [("target", "here", 55, PoolSource("b", "b:1", "used"))]


async def test_it_is_told_when_nobody_has_it_or_nobody_who_has_it_is_alive() -> None:
    with pytest.raises(NotFound):
        await World().ensure(digest="f" * 64)
    with pytest.raises(AgentUnavailable, match="home"):
        await World(leases={"target": lease("target", "here")}).ensure()
    with pytest.raises(AgentUnavailable, match="b is away"):
        await World(broken={"a", "b"}).ensure()
