"""A host loses its power with all its guests: how long until they run elsewhere, and which part of that is ours.

Measured with 200 guests, and with 1,000.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from bench.plane import HOSTS, Plane
from bench.report import Result
from leeward import keys
from leeward.v1.instance_pb2 import Instance

_MOST_S = 10.0
"""From TTL and guard on, for 1,000 guests on a machine with two cores."""
_CONCURRENCY = 32
_WITHIN_S = 120.0
_WAIT_S = 6.0


@dataclass(frozen=True, slots=True)
class _Loss:
    """Which host is lost, and with how many guests."""

    victim: str
    guests: int


@dataclass(slots=True)
class _Moments:
    """When what was seen, on the monotonic clock."""

    missing_s: float = 0.0  # The host's key in etcd is gone.
    proof_s: float = 0.0  # The fence proof is written.
    restarted_s: dict[str, float] = field(default_factory=dict)  # An instance is ACTIVE elsewhere, by its name.
    changed: asyncio.Event = field(default_factory=asyncio.Event)


async def measure(plane: Plane) -> Result:
    """200 guests."""
    result, _ = await _measure(plane, "evacuation", _Loss(f"host-{HOSTS:03}", 200))
    return result


async def measure_storm(plane: Plane) -> Result:
    """1,000 guests, within TTL, what the guard may need, and 10 s."""
    result, last_s = await _measure(plane, "storm", _Loss(f"host-{HOSTS - 1:03}", 1000))
    result.add("of that, beyond TTL and guard", last_s - _WAIT_S, "s", at_most=_MOST_S)
    return result


async def _measure(plane: Plane, name: str, loss: _Loss) -> tuple[Result, float]:
    """Fill a host, cut its power, watch. Also answers when the last guest ran again."""
    result = Result(
        name,
        f"One of {HOSTS} simulated hosts with {loss.guests} guests loses its power. Seen by a client's watch (ACTIVE "
        "on another host, no operation left) and by a watch of etcd (key gone, proof written). Before the proof we "
        "wait on purpose: TTL 5 s, what the guard may need 1 s, margin 0.5 s, counted from the last heartbeat. From "
        "the proof on it is our own work.",
    )
    await _fill(plane, loss, [f"{name}-{number:04}" for number in range(loss.guests)])
    uids = {
        instance.uid for instance in (await plane.client.list_instances("projects/-")).items
        if instance.node == f"nodes/{loss.victim}"
    }  # fmt: skip
    async with _observing(plane, loss) as moments:
        off_s = float((await plane.ask_hosts(f"off {loss.victim}"))["at_s"])
        async with asyncio.timeout(_WITHIN_S):
            while not (moments.proof_s and len(moments.restarted_s) >= len(uids)):
                moments.changed.clear()
                await moments.changed.wait()
    times = sorted(moments.restarted_s.values())
    result.add("power-off to key gone", moments.missing_s - off_s, "s")
    result.add("power-off to proof (waiting)", moments.proof_s - off_s, "s")
    result.add("proof to first restarted", times[0] - moments.proof_s, "s")
    result.add("proof to all restarted (own work)", times[-1] - moments.proof_s, "s")
    result.add("power-off to all restarted", times[-1] - off_s, "s")
    result.add("restarts", len(times) / (times[-1] - moments.proof_s), "a second")
    await _check(plane, uids)
    result.details["guests"] = len(uids)
    return result, times[-1] - off_s


async def _fill(plane: Plane, loss: _Loss, names: list[str]) -> None:
    gate = asyncio.Semaphore(_CONCURRENCY)

    async def launch(number: int, name: str) -> None:
        async with gate:
            await plane.launch(name, client=plane.clients[number % 2], node=f"nodes/{loss.victim}")

    async with asyncio.TaskGroup() as group:
        for number, name in enumerate(names):
            group.create_task(launch(number, name))


@asynccontextmanager
async def _observing(plane: Plane, loss: _Loss) -> AsyncIterator[_Moments]:
    moments = _Moments()
    ready = asyncio.Event()
    async with plane.store() as store:
        revision = (await store.list(keys.FENCES)).revision
        tasks = [asyncio.ensure_future(_watch_instances(plane, loss, moments, ready))]

        async def watch_store(prefix: str) -> None:
            async with store.watch(prefix, from_revision=revision + 1) as batches:
                async for batch in batches:
                    for change in batch.changes:
                        _note_change(loss, moments, change.key, gone=change.value is None)

        tasks += [asyncio.ensure_future(watch_store(prefix)) for prefix in (keys.FENCES, keys.lease(loss.victim))]
        try:
            async with asyncio.timeout(30):
                await ready.wait()
            yield moments
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _note_change(loss: _Loss, moments: _Moments, key: str, *, gone: bool) -> None:
    if key == keys.lease(loss.victim) and gone:
        moments.missing_s = moments.missing_s or time.monotonic()
    elif key.startswith(f"{keys.FENCES}{loss.victim}/") and not gone:
        moments.proof_s = moments.proof_s or time.monotonic()
        moments.changed.set()


async def _watch_instances(plane: Plane, loss: _Loss, moments: _Moments, ready: asyncio.Event) -> None:
    mine: set[str] = set()
    async with aclosing(plane.client.watch_instances("projects/-")) as changes:
        async for change in changes:
            instance = change.resource
            if instance is None:
                ready.set()
                continue
            if not ready.is_set() and instance.node == f"nodes/{loss.victim}":
                mine.add(instance.name)
            elif instance.name in mine and _is_restarted(loss, instance):
                moments.restarted_s.setdefault(instance.name, time.monotonic())
                moments.changed.set()


def _is_restarted(loss: _Loss, instance: Instance) -> bool:
    return (
        instance.node not in ("", f"nodes/{loss.victim}")
        and instance.state == Instance.STATE_ACTIVE
        and not instance.current_operation
    )


async def _check(plane: Plane, uids: set[str]) -> None:
    """Raises AssertionError unless each guest runs exactly once, as the hosts themselves tell it."""
    running = (await plane.ask_hosts("running"))["running"]
    wrong = {uid: running.get(uid, []) for uid in uids if len(running.get(uid, [])) != 1}
    if wrong:
        raise AssertionError(f"{len(wrong)} guests do not run exactly once, e.g. {next(iter(wrong.items()))}")
