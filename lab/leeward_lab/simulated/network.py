"""The network between the parts of a simulated cluster: who reaches whom, how late, and what is lost."""

import asyncio
from dataclasses import dataclass, field

CONTROLLERS = "controllers"
STORE = "store"


@dataclass(slots=True)
class Network:
    """Links that are cut, by unordered pairs of names. A node's name stands for its host."""

    _cut: set[frozenset[str]] = field(default_factory=set)
    _waiting: dict[frozenset[str], asyncio.Event] = field(default_factory=dict)

    def cut(self, one: str, other: str) -> None:
        """Nothing passes between the two from now on; calls under way are lost."""
        link = frozenset({one, other})
        self._cut.add(link)
        self._wake(link)

    def heal(self, one: str, other: str) -> None:
        """The two reach each other again."""
        link = frozenset({one, other})
        self._cut.discard(link)
        self._wake(link)

    def isolate(self, node: str) -> None:
        """Cut a host off from the store and the controllers."""
        self.cut(node, STORE)
        self.cut(node, CONTROLLERS)

    def rejoin(self, node: str) -> None:
        """End `isolate`."""
        self.heal(node, STORE)
        self.heal(node, CONTROLLERS)

    def reaches(self, one: str, other: str) -> bool:
        """Whether something sent now arrives."""
        return frozenset({one, other}) not in self._cut

    async def until_cut(self, one: str, other: str) -> None:
        """Wait until the link between the two is cut."""
        while self.reaches(one, other):
            await self._changed(one, other)

    async def until_healed(self, one: str, other: str) -> None:
        """Wait until the link between the two stands."""
        while not self.reaches(one, other):
            await self._changed(one, other)

    async def _changed(self, one: str, other: str) -> None:
        await self._waiting.setdefault(frozenset({one, other}), asyncio.Event()).wait()

    def _wake(self, link: frozenset[str]) -> None:
        if (waiting := self._waiting.pop(link, None)) is not None:
            waiting.set()
