"""What goes wrong in a swarm: each fault begins at once and knows how to end itself."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from leeward.agent.types import GuestState
from leeward.errors import LeewardError
from leeward_agent.storage.memory import PoolFault
from leeward_controller.services.everything import Services
from leeward_controller.services.instances import Target
from leeward_lab.simulated.cluster import POOL_ID
from leeward_lab.simulated.network import CONTROLLERS, STORE
from leeward_lab.virtual_time import VirtualClock, freeze, thaw
from tests.simulation.bmc import Bmc, Bmcs
from tests.simulation.story import ALICE, Story
from tests.simulation.weather import Climate

End = Callable[[], Awaitable[None]]

_ORDER_S = 5.0


@dataclass(frozen=True, slots=True)
class Begun:
    """A fault that has begun: what it is, and how it ends."""

    story: str
    end: End


async def _nothing() -> None:
    return


class Touched:
    """When each node's two heartbeats and its agent were last disturbed by a fault, for judging the guard."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._at_s: dict[tuple[str, str], float] = {}
        self._now: dict[tuple[str, str], int] = {}

    def begin(self, node: str, *parts: str) -> End:
        """A fault on these parts of a node begins; returns how to say that it has ended."""
        marks = [(node, part) for part in parts]
        for mark in marks:
            self._now[mark] = self._now.get(mark, 0) + 1

        async def end() -> None:
            for mark in marks:
                self._now[mark] -= 1
                self._at_s[mark] = self._now_s()

        return end

    def within(self, node: str, part: str, seconds: float) -> bool:
        """Whether a fault disturbed it during the last so many seconds."""
        if self._now.get((node, part)):
            return True
        return self._now_s() - self._at_s.get((node, part), float("-inf")) <= seconds


class Faults:
    """Draws faults. All that is drawn comes from one generator."""

    def __init__(self, story: Story, climate: Climate, rng: random.Random) -> None:
        self.bmcs = Bmcs(story.clock, rng, cut=self._cut_by_bmc)
        self.drawn = ""
        self._story = story
        self._cluster = story.cluster
        self._network = story.cluster.network
        self._climate = climate
        self._rng = rng
        self.touched = Touched(story.clock.monotonic_s)
        self._kinds: list[tuple[int, Callable[[], Awaitable[Begun | None]]]] = [
            (4, self.kill_controller),
            (3, self.cut_power),
            (2, self.quick_reboot),
            (3, self.kill_agent),
            (3, self.cut_from_store),
            (3, self.cut_from_controllers),
            (2, self.cut_between_hosts),
            (3, self.isolate),
            (2, self.lose_storage),
            (3, self.lose_everything),
            (2, self.cut_controller_from_store),
            (1, self.store_outage),
            (4, self.bad_weather),
            (2, self.stall_watch),
            (3, self.stop_controller),
            (3, self.stop_agent),
            (2, self.clock_jumps),
            (2, self.stale_reads),
            (1, self.change_bmc),
            (3, self.bad_weather_at_agent),
            (2, self.crash_guest),
            (1, self.guest_shuts_down),
            (2, self.lose_switch_answer),
            (1, self.cannot_start),
            (1, self.compact),
            (1, self.disarm),
            (1, self.release_brake),
            (1, self.ask_to_fence),
        ]

    async def draw(self) -> Begun | None:
        """Begin one of them; None when there is nobody for it."""
        weights = [weight for weight, _ in self._kinds]
        kind = self._rng.choices([kind for _, kind in self._kinds], weights)[0]
        self.drawn = kind.__name__
        return await kind()

    def _node(self) -> str:
        return self._rng.choice(sorted(self._cluster.nodes))

    def _host_up(self) -> str:
        up = sorted(name for name, node in self._cluster.nodes.items() if node.agent is not None)
        return self._rng.choice(up) if up else ""

    async def kill_controller(self) -> Begun | None:
        """SIGKILL, and a new replica after a while."""
        up = sorted(name for name, controller in self._cluster.controllers.items() if controller.core is not None)
        if not up:
            return None
        controller = self._cluster.controllers[self._rng.choice(up)]
        await controller.kill()

        async def end() -> None:
            if controller.core is None:
                controller.start(fence=self.bmcs)

        return Begun(f"{controller.name} is killed", end)

    async def cut_power(self) -> Begun | None:
        """A host goes dark, and comes back."""
        name = self._host_up()
        if not name:
            return None
        untouch = self.touched.begin(name, "agent")
        await self._cluster.nodes[name].power_off()

        async def end() -> None:
            if not self._cluster.nodes[name].host.powered:
                await self._story.power_on(name)
            await untouch()

        return Begun(f"power of {name} is cut", end)

    async def quick_reboot(self) -> Begun | None:
        """A host resets, so fast that its etcd lease may live through it."""
        name = self._host_up()
        if not name:
            return None
        untouch = self.touched.begin(name, "agent")
        await self._cluster.nodes[name].power_off()
        await self._story.clock.sleep(self._rng.uniform(0.2, 4.0))
        if not self._cluster.nodes[name].host.powered:
            await self._story.power_on(name)
        await untouch()
        return Begun(f"{name} was rebooted", _nothing)

    async def kill_agent(self) -> Begun | None:
        """SIGKILL of an agent alone."""
        name = self._host_up()
        if not name:
            return None
        node, boot_id = self._cluster.nodes[name], self._cluster.nodes[name].boot_id
        untouch = self.touched.begin(name, "agent")
        await node.kill_agent()

        async def end() -> None:
            if node.agent is None and node.host.powered and node.boot_id == boot_id:
                await node.start_agent()
            await untouch()

        return Begun(f"the agent of {name} is killed", end)

    def _cut(self, *links: tuple[str, str]) -> End:
        for one, other in links:
            self._network.cut(one, other)

        async def end() -> None:
            for one, other in links:
                self._network.heal(one, other)

        return end

    async def cut_from_store(self) -> Begun:
        """A host loses etcd alone."""
        name = self._node()
        heal, untouch = self._cut((name, STORE)), self.touched.begin(name, "store")
        return Begun(f"{name} is cut off from etcd", _both(heal, untouch))

    async def cut_from_controllers(self) -> Begun:
        """Controllers lose a host, whose heartbeats go on."""
        name = self._node()
        return Begun(f"{name} is cut off from the controllers", self._cut((name, CONTROLLERS)))

    async def cut_between_hosts(self) -> Begun:
        """Two hosts lose each other."""
        one, other = self._rng.sample(sorted(self._cluster.nodes), 2)
        return Begun(f"{one} and {other} are cut off from each other", self._cut((one, other)))

    async def isolate(self) -> Begun:
        """A host loses the whole network but its storage."""
        name = self._node()
        links = [(name, other) for other in (STORE, CONTROLLERS, *self._cluster.nodes) if other != name]
        return Begun(f"{name} is isolated", _both(self._cut(*links), self.touched.begin(name, "store")))

    def _break_pool(self, name: str) -> End:
        fault = self._rng.choice([PoolFault.FAILING, PoolFault.HANGING])
        self._cluster.pool.faults[name] = fault
        host, untouch = self._cluster.nodes[name].host, self.touched.begin(name, "pool")
        host.lose_storage(POOL_ID)

        async def end() -> None:
            self._cluster.pool.faults.pop(name, None)
            host.restore_storage(POOL_ID)
            await untouch()

        return end

    async def lose_storage(self) -> Begun:
        """A host loses its shared storage alone."""
        name = self._node()
        return Begun(f"{name} loses its storage", self._break_pool(name))

    async def lose_everything(self) -> Begun:
        """A host loses network and storage, and runs on: what only a guard can end."""
        name = self._node()
        isolated = await self._isolate_named(name)
        return Begun(f"{name} loses everything", _both(isolated, self._break_pool(name)))

    async def _isolate_named(self, name: str) -> End:
        links = [(name, other) for other in (STORE, CONTROLLERS, *self._cluster.nodes) if other != name]
        return _both(self._cut(*links), self.touched.begin(name, "store"))

    async def cut_controller_from_store(self) -> Begun:
        """A replica loses etcd."""
        name = self._rng.choice(sorted(self._cluster.controllers))
        return Begun(f"{name} is cut off from etcd", self._cut((name, STORE)))

    async def store_outage(self) -> Begun:
        """Nobody reaches etcd."""
        names = [*self._cluster.nodes, *self._cluster.controllers]
        heal = self._cut(*((name, STORE) for name in names))
        ends = [self.touched.begin(name, "store") for name in self._cluster.nodes]
        return Begun("nobody reaches etcd", _both(heal, *ends))

    async def bad_weather(self) -> Begun:
        """Calls to the store are slow, fail, and lose their answers, for one part or for all."""
        names = sorted([*self._cluster.nodes, *self._cluster.controllers])
        chosen = names if self._rng.random() < 0.3 else [self._rng.choice(names)]
        one_way = self._rng.random() < 0.15
        for name in chosen:
            weather = self._climate.at_store(name)
            weather.fails = self._rng.choice([0.0, 0.1, 0.4])
            weather.loses = 1.0 if one_way else self._rng.choice([0.0, 0.1, 0.4])
            weather.late = self._rng.choice([0.0, 0.1, 0.3])
            weather.delay_s = self._rng.choice([0.0, 0.02, 0.4])
        ends = [self.touched.begin(name, "store") for name in chosen]

        async def clear() -> None:
            for name in chosen:
                weather = self._climate.at_store(name)
                weather.fails = weather.loses = weather.late = weather.delay_s = 0.0

        who = "all" if len(chosen) > 1 else chosen[0]
        return Begun(f"etcd answers {'nothing' if one_way else 'badly'} to {who}", _both(clear, *ends))

    async def stall_watch(self) -> Begun:
        """A replica's watch falls silent while its other calls work."""
        name = self._rng.choice(sorted(self._cluster.controllers))
        weather = self._climate.at_store(name)
        weather.stalled = True

        async def end() -> None:
            weather.stalled = False

        return Begun(f"the watch of {name} stalls", end)

    async def stop_controller(self) -> Begun:
        """A replica's process is stopped, and goes on later where it was, not knowing how late it is."""
        name = self._rng.choice(sorted(self._cluster.controllers))
        freeze(name)

        async def end() -> None:
            thaw(name)

        return Begun(f"{name} is stopped", end)

    async def stop_agent(self) -> Begun | None:
        """An agent's process is stopped while guard and guests run on, and goes on later where it was."""
        name = self._host_up()
        if not name:
            return None
        stopped, untouch = self._cluster.nodes[name].agent_process, self.touched.begin(name, "agent")
        freeze(stopped)

        async def end() -> None:
            thaw(stopped)
            await untouch()

        return Begun(f"the agent of {name} is stopped", end)

    async def clock_jumps(self) -> Begun:
        """A part's time of day is wrong; what it measures time spans by is not."""
        name = self._rng.choice(sorted([*self._cluster.nodes, *self._cluster.controllers]))
        clock, seconds = self._cluster.clock_of(name), self._rng.choice([-3600.0, -30.0, 30.0, 3600.0])
        assert isinstance(clock, VirtualClock)
        clock.wall_offset_s = seconds

        async def end() -> None:
            clock.wall_offset_s = 0.0

        return Begun(f"the clock of {name} jumps by {seconds:+g} s", end)

    async def stale_reads(self) -> Begun:
        """A host reads heartbeats from its storage as they were a moment ago; less than failover's margin."""
        name = self._node()
        self._cluster.pool.stale_s[name] = self._rng.uniform(0.1, 0.4)

        async def end() -> None:
            self._cluster.pool.stale_s.pop(name, None)

        return Begun(f"{name} reads its storage late", end)

    async def change_bmc(self) -> Begun:
        """A host's fence device behaves otherwise from now on."""
        name, mode = self._node(), self._rng.choice(list(Bmc))
        self.bmcs.modes[name] = mode
        return Begun(f"the fence device of {name}: {mode}", _nothing)

    async def _cut_by_bmc(self, name: str) -> None:
        node = self._cluster.nodes[name]
        if node.host.powered:
            self._story.tell(f"the fence device of {name} cuts its power")
            await node.power_off()

    async def power_on_all(self) -> None:
        """Whatever a device has switched off is switched on."""
        for name, node in sorted(self._cluster.nodes.items()):
            if not node.host.powered:
                await self._story.power_on(name)

    async def bad_weather_at_agent(self) -> Begun:
        """Calls to an agent are slow, fail, or lose their answers."""
        name = self._node()
        weather = self._climate.at_agent(name)
        weather.fails = self._rng.choice([0.0, 0.2, 0.5])
        weather.loses = self._rng.choice([0.0, 0.2, 0.5, 1.0])
        weather.repeats = self._rng.choice([0.0, 0.3, 1.0])
        weather.delay_s = self._rng.choice([0.0, 0.05, 0.5])

        async def end() -> None:
            weather.clear()

        return Begun(f"calls to {name} are lossy", end)

    def _guest(self) -> tuple[str, str] | None:
        running = [
            (name, uid)
            for name, node in sorted(self._cluster.nodes.items())
            for uid, guest in sorted(node.host.guests.items())
            if guest.state is GuestState.RUNNING
        ]
        return self._rng.choice(running) if running else None

    async def crash_guest(self) -> Begun | None:
        """A guest's process dies."""
        chosen = self._guest()
        if chosen is None:
            return None
        node, uid = chosen
        self._cluster.nodes[node].host.guest_crash(uid)
        return Begun(f"{uid} crashes on {node}", _nothing)

    async def guest_shuts_down(self) -> Begun | None:
        """A guest shuts itself down."""
        chosen = self._guest()
        if chosen is None:
            return None
        node, uid = chosen
        self._cluster.nodes[node].host.guest_power_off(uid)
        return Begun(f"{uid} shuts itself down on {node}", _nothing)

    async def lose_switch_answer(self) -> Begun:
        """Migrations to a host end in doubt."""
        name = self._node()
        host = self._cluster.nodes[name].host
        host.loses_switch_answer = True

        async def end() -> None:
            host.loses_switch_answer = False

        return Begun(f"migrations to {name} lose their last answer", end)

    async def cannot_start(self) -> Begun:
        """A host's hypervisor refuses to start guests."""
        name = self._node()
        host = self._cluster.nodes[name].host
        host.start_error = "out of luck"

        async def end() -> None:
            host.start_error = ""

        return Begun(f"{name} cannot start guests", end)

    async def compact(self) -> Begun:
        """The store forgets its history."""
        now = await self._cluster.store.list("/none")
        await self._cluster.store.compact(now.revision)
        return Begun("etcd is compacted", _nothing)

    async def disarm(self) -> Begun | None:
        """An operator disarms failover, and arms it again."""

        async def arm() -> None:
            await self._order("arm failover", lambda services: services.failover_control.arm(principal=ALICE.principal))

        done = await self._order(
            "disarm failover",
            lambda services: services.failover_control.disarm(
                reason="work on the network", duration_s=600.0, principal=ALICE.principal
            ),
        )
        return Begun("failover is disarmed", arm) if done else None

    async def release_brake(self) -> Begun | None:
        """An operator releases the brake, should it be pulled."""
        done = await self._order(
            "release the brake",
            lambda services: services.failover_control.release_brake(reason="it is so", principal=ALICE.principal),
        )
        return Begun("the brake is released", _nothing) if done else None

    async def ask_to_fence(self) -> Begun | None:
        """An operator has a node fenced that seems to be away."""
        target = Target(f"nodes/{self._node()}")
        done = await self._order(
            f"fence {target.name}", lambda services: services.node_operations.fence(target, ALICE, force=False)
        )
        return Begun(f"{target.name} is to be fenced", _nothing) if done else None

    async def _order(self, what: str, ask: Callable[[Services], Awaitable[object]]) -> bool:
        """Ask a replica for it; whether it was done. A replica that does not answer in time is given up."""
        if not any(controller.core is not None for controller in self._cluster.controllers.values()):
            return False
        try:
            async with asyncio.timeout(_ORDER_S):
                await ask(self._story.services())
        except (LeewardError, TimeoutError) as error:
            self._story.tell(f"refused to {what}: {error}")
            return False
        return True


def _both(*ends: End) -> End:
    async def end() -> None:
        for each in ends:
            await each()

    return end
