"""What each command of a scenario does."""

from collections.abc import Awaitable, Callable

from leeward.agent.types import DiskFormat, GuestProbe, GuestState, ProbeKind, RebootMode
from leeward.errors import LeewardError
from leeward_agent.storage.memory import PoolFault
from leeward_controller.domain.group import GroupPolicy
from leeward_controller.domain.instance import Readiness, Resources, RestartPriority
from leeward_controller.domain.operation import (
    Arguments,
    DeleteArguments,
    LiveMigrateArguments,
    Operation,
    OperationType,
    PlainArguments,
    RebootArguments,
    RescueArguments,
    ResizeArguments,
    ShelveArguments,
    SnapshotArguments,
    StartArguments,
    StopArguments,
)
from leeward_controller.ports import Fence
from leeward_controller.services.groups import NewGroup
from leeward_controller.services.instances import InstanceChanges, Target
from leeward_controller.services.shown import ShownOperation
from leeward_lab.simulated.cluster import POOL_ID
from leeward_lab.simulated.network import CONTROLLERS, STORE
from tests.scenarios.script import verb
from tests.simulation.story import ALICE, DIGEST, IMAGE, Story

_AT_ONCE_S = 0.0


class Actions:
    """The commands, on one story. `fence` is what controllers are started with."""

    def __init__(self, story: Story, fence: Fence) -> None:
        self._story = story
        self._cluster = story.cluster
        self._network = story.cluster.network
        self._fence = fence
        self._last: dict[str, Operation] = {}

    # What users ask for.

    @verb("create {name}[ on {host}][ with {mib} MiB][ in group {group}]")
    async def create(self, name: str, host: str, mib: str, group: str) -> None:
        await self._ask(name, lambda: self._story.create(name, node=host, memory_mib=int(mib or 1024), group=group))

    @verb("{what:start|stop|delete|pause|suspend|resume|shelve|rescue|snapshot|revert resize of} {name}")
    @verb("{what:reboot} {name}[ {mode:hard}]")
    @verb("{what:migrate} {name}[ to {host}][ at {rate} MiB/s]")
    @verb("{what:resize} {name}[ on {host}]")
    @verb("{what:evacuate} {name}[ to {host}]")
    async def operate(self, what: str, name: str, mode: str = "", host: str = "", rate: str = "") -> None:
        image = f"projects/p/images/{name}"
        table: dict[str, tuple[OperationType, Arguments]] = {
            "start": (OperationType.START, StartArguments()),
            "stop": (OperationType.STOP, StopArguments(grace_period_s=10.0)),
            "delete": (OperationType.DELETE, DeleteArguments()),
            "pause": (OperationType.PAUSE, PlainArguments()),
            "suspend": (OperationType.SUSPEND, PlainArguments()),
            "resume": (OperationType.RESUME, PlainArguments()),
            "shelve": (OperationType.SHELVE, ShelveArguments(image, 3600.0, 10.0)),
            "rescue": (OperationType.RESCUE, RescueArguments(IMAGE, DIGEST, DiskFormat.RAW, 10.0)),
            "snapshot": (OperationType.SNAPSHOT, SnapshotArguments(image)),
            "revert resize of": (OperationType.REVERT_RESIZE, PlainArguments()),
            "reboot": (OperationType.REBOOT, RebootArguments(RebootMode.HARD if mode else RebootMode.SOFT, 10.0)),
            "migrate": (OperationType.LIVE_MIGRATE, LiveMigrateArguments(host, bandwidth_mib_s=int(rate or 0))),
            "resize": (OperationType.RESIZE, ResizeArguments("large", Resources(2, 2048, 4), host)),
        }
        if what == "evacuate":
            moves, target = self._story.services().instances.moves, Target(f"projects/p/instances/{name}")
            await self._ask(
                name,
                lambda: _begun(
                    moves.evacuate(target, ALICE, node=f"nodes/{host}" if host else "", allow_rebuild=False)
                ),
            )
            return
        await self._ask(name, lambda: self._story.submit(name, *table[what]))

    @verb("lock {name}")
    async def lock(self, name: str) -> None:
        locking = self._story.services().instances.locking
        await locking.lock(Target(f"projects/p/instances/{name}"), ALICE, reason="a scenario")

    @verb("restart {name} first[{answering:, and the others when it answers}]")
    async def restart_first(self, name: str, answering: str) -> None:
        readiness = Readiness(GuestProbe(ProbeKind.GUEST_AGENT)) if answering else None
        changes = InstanceChanges(
            restart_priority=RestartPriority.HIGHEST, changes_readiness=bool(answering), readiness=readiness
        )
        await self._story.services().instances.records.update(Target(f"projects/p/instances/{name}"), changes, ALICE)

    @verb("group {name} {policy:together|apart}")
    async def group(self, name: str, policy: str) -> None:
        wanted = GroupPolicy.AFFINITY if policy == "together" else GroupPolicy.ANTI_AFFINITY
        await self._story.services().groups.create(NewGroup("projects/p", name, wanted))

    @verb("delete group {name}")
    async def delete_group(self, name: str) -> None:
        try:
            await self._story.services().groups.delete(Target(f"projects/p/groups/{name}"))
        except LeewardError as error:
            self._story.tell(f"refused: {error.message}")

    @verb("cancel {name}")
    async def cancel(self, name: str) -> None:
        core = self._story.core().core
        assert core is not None
        subject = self._story.node(name) if name in self._cluster.nodes else self._story.instance(name)
        running = subject.current_operation
        try:
            await core.submitter.cancel(running.removeprefix("operations/"), ALICE)
        except LeewardError as error:
            self._story.tell(f"refused: {error.message}")

    async def _ask(self, name: str, ask: Callable[[], Awaitable[Operation]]) -> None:
        try:
            self._last[name] = await ask()
        except LeewardError as error:
            self._story.tell(f"refused: {error.message}")

    # What operators do.

    @verb("uncordon {host}[{back: and bring back}]")
    async def uncordon(self, host: str, back: str) -> None:
        await self._story.services().nodes.uncordon(Target(f"nodes/{host}"), ALICE, bring_back=bool(back))

    @verb("drain {host}[ {number} at a time]")
    async def drain(self, host: str, number: str) -> None:
        await self._ask(host, lambda: self._story.drain(host, parallelism=int(number or 0)))

    @verb("fence {host}[{force: by force}]")
    async def fence_node(self, host: str, force: str) -> None:
        operations = self._story.services().node_operations
        target = Target(f"nodes/{host}")
        await self._ask(host, lambda: _begun(operations.fence(target, ALICE, force=bool(force))))

    @verb("remove {host}")
    async def remove(self, host: str) -> None:
        operations = self._story.services().node_operations
        await self._ask(host, lambda: _begun(operations.remove(Target(f"nodes/{host}"), ALICE)))

    @verb("cordon {host}")
    async def cordon(self, host: str) -> None:
        await self._story.services().nodes.cordon(Target(f"nodes/{host}"), reason="a scenario")

    @verb("disarm failover for {seconds}")
    async def disarm(self, seconds: str) -> None:
        control = self._story.services().failover_control
        await control.disarm(reason="a scenario", duration_s=float(seconds), principal=ALICE.principal)

    @verb("arm failover")
    async def arm(self) -> None:
        await self._story.services().failover_control.arm(principal=ALICE.principal)

    @verb("release brake")
    async def release_brake(self) -> None:
        await self._story.services().failover_control.release_brake(reason="a scenario", principal=ALICE.principal)

    # What goes wrong.

    @verb("power-off {host}")
    async def power_off(self, host: str) -> None:
        if host == "everything":
            await self.kill_controllers()
        for name in self._hosts(host):
            await self._cluster.nodes[name].power_off()

    @verb("power-on {host}")
    async def power_on(self, host: str) -> None:
        for name in self._hosts(host):
            await self._story.power_on(name)
        if host == "everything":
            await self.start_controllers()

    @verb("kill agent of {host}")
    async def kill_agent(self, host: str) -> None:
        await self._cluster.nodes[host].kill_agent()

    @verb("start agent of {host}")
    async def start_agent(self, host: str) -> None:
        await self._cluster.nodes[host].start_agent()

    @verb("kill controller {name}")
    async def kill_controller(self, name: str) -> None:
        chosen = self._story.narrator.leader if name == "leader" else name
        self._story.tell(f"{chosen} is killed")
        await self._cluster.controllers[chosen].kill()

    @verb("start controller {name}")
    async def start_controller(self, name: str) -> None:
        self._cluster.controllers[name].start(fence=self._fence)

    @verb("kill every controller")
    async def kill_controllers(self) -> None:
        for controller in self._cluster.controllers.values():
            await controller.kill()

    @verb("start every controller")
    async def start_controllers(self) -> None:
        for controller in self._cluster.controllers.values():
            if controller.core is None:
                controller.start(fence=self._fence)

    @verb("starts fail on {host}")
    async def break_starts(self, host: str) -> None:
        self._cluster.nodes[host].host.start_error = "QEMU does not start here"

    @verb("starts work on {host}")
    async def mend_starts(self, host: str) -> None:
        self._cluster.nodes[host].host.start_error = ""

    @verb("partition {host} from {other}")
    async def partition(self, host: str, other: str) -> None:
        if other in ("storage", "everything"):
            self._cluster.pool.faults[host] = PoolFault.HANGING
            self._cluster.nodes[host].host.lose_storage(POOL_ID)
        peers = {
            "etcd": [STORE],
            "controllers": [CONTROLLERS],
            "storage": [],
            "everything": [STORE, CONTROLLERS, *(name for name in self._cluster.nodes if name != host)],
        }
        for peer in peers.get(other, [other]):
            self._network.cut(host, peer)

    @verb("heal {host}")
    async def heal(self, host: str) -> None:
        if host in self._cluster.nodes:
            self._cluster.pool.faults.pop(host, None)
            self._cluster.nodes[host].host.restore_storage(POOL_ID)
        for peer in [STORE, CONTROLLERS, *(name for name in self._cluster.nodes if name != host)]:
            self._network.heal(host, peer)

    @verb("crash {name}")
    async def crash(self, name: str) -> None:
        instance = self._story.instance(name)
        self._cluster.nodes[instance.node].host.guest_crash(instance.uid)

    @verb("shut down {name} from inside")
    async def shut_down(self, name: str) -> None:
        instance = self._story.instance(name)
        self._cluster.nodes[instance.node].host.guest_power_off(instance.uid)

    @verb("wait {seconds}")
    async def wait(self, seconds: str) -> None:
        await self._story.clock.sleep(float(seconds))

    # What is to be seen.

    @verb("expect {name} gone[ within {within}]")
    async def expect_gone(self, name: str, within: str) -> None:
        await self._until(lambda: not self._story.has_instance(name), within)

    @verb("expect {name} on {hosts}[ within {within}]")
    @verb("expect {name} {state:[A-Z_]+}[ on {hosts}][ within {within}]")
    async def expect(self, name: str, hosts: str, within: str, state: str = "") -> None:
        if name in self._cluster.nodes:
            await self._until(lambda: self._story.node(name).shown_condition == state, within)
            return

        def there() -> bool:
            if not self._story.has_instance(name):
                return False
            instance = self._story.instance(name)
            runs = self._cluster.world.running_on(instance.uid)
            in_place = not hosts or (instance.node in hosts.split("|") and (not runs or runs == [instance.node]))
            runs_as_told = bool(runs) == (instance.wanted_guest is not GuestState.STOPPED)
            return in_place and runs_as_told and (not state or instance.state == state)

        await self._until(there, within)

    @verb("expect brake {position:on|off}[ within {within}]")
    async def expect_brake(self, position: str, within: str) -> None:
        await self._until(lambda: self._story.braked() == (position == "on"), within)

    @verb("expect operation of {name} {phase:[A-Z]+}[ within {within}]")
    async def expect_operation(self, name: str, phase: str, within: str) -> None:
        await self._until(lambda: self._story.operation(self._last[name].id).phase == phase, within)

    @verb("expect settled[ within {within}]")
    async def expect_settled(self, within: str) -> None:
        await self._until(lambda: not self._story.running_operations() and not self._story.unsettled(), within)

    async def _until(self, condition: Callable[[], bool], within: str) -> None:
        within_s = float(within or _AT_ONCE_S)
        await self._story.until(condition, within_s=within_s, what="the expectation comes true")

    def _hosts(self, host: str) -> list[str]:
        return sorted(self._cluster.nodes) if host == "everything" else [host]


async def _begun(asking: Awaitable[ShownOperation]) -> Operation:
    return (await asking).operation
