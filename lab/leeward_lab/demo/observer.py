"""Watches the cluster through the public API and notes when what was seen, on one clock."""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from leeward.client import Client
from leeward.v1.instance_pb2 import Instance
from leeward.v1.node_pb2 import Node


@dataclass
class Observer:
    """The latest of every node and instance, and when each condition and place was first seen in this chapter."""

    client: Client
    nodes: dict[str, Node] = field(default_factory=dict)
    instances: dict[str, Instance] = field(default_factory=dict)
    conditions: dict[tuple[str, str], float] = field(default_factory=dict)
    places: dict[tuple[str, str], float] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    async def __aenter__(self) -> "Observer":
        self._tasks = [asyncio.ensure_future(self._watch_nodes()), asyncio.ensure_future(self._watch_instances())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def forget(self) -> None:
        """Begin a new chapter: only what is seen from now on counts."""
        self.conditions.clear()
        self.places.clear()

    async def until(self, met: Callable[[], bool], *, within_s: float, what: str) -> None:
        """Wait until `met()` holds, looking at each change. Raises TimeoutError, and what ended a watch."""
        try:
            async with asyncio.timeout(within_s):
                while not met():
                    changed = asyncio.ensure_future(self._changed.wait())
                    try:
                        await asyncio.wait({changed, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        changed.cancel()
                    for task in self._tasks:
                        if task.done():
                            task.result()
        except TimeoutError:
            raise TimeoutError(f"not within {within_s:g} s: {what}") from None

    async def _watch_nodes(self) -> None:
        async with aclosing(self.client.watch_nodes()) as changes:
            async for change in changes:
                if change.resource is not None:
                    self._take_node(change.resource)

    def _take_node(self, node: Node) -> None:
        now_s = time.monotonic()
        self.nodes[node.name] = node
        condition = Node.Condition.Name(node.condition).removeprefix("CONDITION_")
        self.conditions.setdefault((node.name, condition), now_s)
        self._wake()

    async def _watch_instances(self) -> None:
        async with aclosing(self.client.watch_instances("projects/-")) as changes:
            async for change in changes:
                if change.resource is not None:
                    instance = change.resource
                    self.instances[instance.name] = instance
                    self.places.setdefault((instance.name, instance.node), time.monotonic())
                    self._wake()

    def _wake(self) -> None:
        event, self._changed = self._changed, asyncio.Event()
        event.set()
