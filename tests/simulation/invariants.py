"""What must never happen, checked at the instant at which it would."""

from collections.abc import Callable
from dataclasses import dataclass

from leeward.agent.types import StopCause
from leeward.errors import InternalError
from leeward_controller.domain.instance import Instance, InstanceState
from leeward_controller.domain.node import FenceProof, NodeAllocation
from leeward_controller.domain.operation import Operation
from leeward_controller.scheduler.placement import PlacementPolicy
from leeward_lab.simulated.cluster import SimulatedCluster

# The steps by which the agent of the node that is left has said that nothing of the guest runs there.
_ENDING_STEPS = frozenset({"stop", "stop_rescue", "put_away", "remove_guest", "suspend"})
_BY_ITSELF = frozenset({StopCause.NONE, StopCause.CRASHED, StopCause.GUEST})


@dataclass(frozen=True, slots=True)
class Run:
    """One stretch during which a guest could write its disk on a node, in one boot of it."""

    uid: str
    node: str
    boot_id: str
    epoch: int
    began_s: float


@dataclass(frozen=True, slots=True)
class Ending:
    """How the last run of a guest ended. `handed_over`: by a migration, to the node where it runs next."""

    run: Run
    cause: StopCause
    handed_over: bool
    at_s: float


class Broken(AssertionError):
    """Something forbidden has happened."""


class Invariants:
    """Watches every guest and every record of one cluster. The first violation is kept, for `check` to raise."""

    def __init__(self, *, now_s: Callable[[], float], tell: Callable[[str], None], plain: Callable[[str], str]) -> None:
        self.running: dict[str, Run] = {}
        self.runs: list[Run] = []
        self.broken: Broken | None = None
        self._now_s = now_s
        self._tell = tell
        self._plain = plain
        self._cluster: SimulatedCluster | None = None
        self._policy = PlacementPolicy()
        self._endings: dict[str, Ending] = {}
        self._boots: dict[str, list[str]] = {}
        self._proved: set[tuple[str, str]] = set()
        self._instances: dict[str, Instance] = {}
        self._seen_ended_s: dict[str, float] = {}

    def watch(self, cluster: SimulatedCluster) -> None:
        """The cluster that this is about."""
        self._cluster = cluster
        self._policy = cluster.policy.placement

    def boot(self, node: str, boot_id: str) -> None:
        """A node begins a new life."""
        self._boots.setdefault(node, []).append(boot_id)

    def check(self) -> None:
        """Raise what was found; not where it happened, for that is in the middle of somebody else's work."""
        if self.broken is not None:
            raise self.broken

    def on_run_change(self, uid: str, node: str, running: bool, epoch: int) -> None:
        """Called in the instant in which a guest begins or ceases to be able to write its disk."""
        assert self._cluster is not None
        self._tell(f"{uid} {'runs' if running else 'ends'} on {node} (epoch {epoch})")
        if not running:
            self._end(uid, node)
            return
        boot_id = self._cluster.nodes[node].boot_id
        run = Run(uid, node, boot_id, epoch, self._now_s())
        other = self.running.get(uid)
        self.require(other is None, f"{uid} runs on {node} while it still runs on {other.node if other else ''}")
        if (ending := self._endings.get(uid)) is not None:
            self.require(epoch >= ending.run.epoch, f"the run epoch of {uid} went back to {epoch}")
            if ending.run.node != node and not ending.handed_over:
                self._check_move(ending, run)
        self.running[uid] = run
        self.runs.append(run)
        self._check_room(node)

    def on_record(self, before: object, after: object) -> None:
        """Called after each change of a record."""
        if isinstance(after, Operation):
            self._check_no_defect(after)
        match before, after:
            case _, Instance():
                earlier = self._instances.get(after.uid)
                rises = earlier is None or after.run_epoch >= earlier.run_epoch
                self.require(rises, f"the recorded run epoch of {after.uid} went back to {after.run_epoch}")
                self._instances[after.uid] = after
            case Operation(), Operation() if len(after.history) and after.history != before.history:
                last = after.history[-1]
                if last.step in _ENDING_STEPS and last.outcome == "done":
                    self._seen_ended_s[after.instance_uid] = self._now_s()
            case _, FenceProof():
                self._proved.add((after.node, after.boot_id))
            case _, NodeAllocation():
                self._check_allocation(after)

    def _check_no_defect(self, operation: Operation) -> None:
        for cause in (operation.error, operation.undo_cause):
            defective = cause is not None and cause.reason == InternalError.reason
            self.require(not defective, f"{operation.type} {operation.subject} met a defect: {cause and cause.message}")

    def _end(self, uid: str, node: str) -> None:
        assert self._cluster is not None
        run = self.running.pop(uid, None)
        self.require(run is not None and run.node == node, f"{uid} ended on {node}, where it did not run")
        if run is None:
            return
        guest = self._cluster.nodes[node].host.guests[uid]
        self._endings[uid] = Ending(run, guest.stop_cause, handed_over=guest.active, at_s=self._now_s())

    def _check_move(self, ending: Ending, run: Run) -> None:
        """Started elsewhere: with a new epoch, and, unless its old node has said that it ended there, after a proof."""
        old = ending.run
        self.require(run.epoch > old.epoch, f"{run.uid} was started on {run.node} with the epoch of {old.node}")
        instance = self._instances.get(run.uid)
        if ending.cause not in _BY_ITSELF or instance is None or instance.state is InstanceState.BUILDING:
            return
        if self._seen_ended_s.get(run.uid, -1.0) >= ending.at_s:
            return
        boots = self._boots.get(old.node, [])
        since = boots[boots.index(old.boot_id) :]  # That a boot is over tells that those before it are.
        proved = any((old.node, boot_id) in self._proved for boot_id in since)
        self.require(proved, f"{run.uid} was started on {run.node} without a proof for {old.node}")

    def _check_room(self, node: str) -> None:
        assert self._cluster is not None
        host = self._cluster.nodes[node].host
        used_mib = sum(guest.spec.memory_mib for guest in host.guests.values() if guest.may_write)
        usable_mib = host.memory_mib - self._policy.reserved_memory_mib
        self.require(used_mib <= usable_mib, f"{used_mib} of {usable_mib} MiB are used on {node}")

    def _check_allocation(self, allocation: NodeAllocation) -> None:
        assert self._cluster is not None
        host = self._cluster.nodes[allocation.node].host
        usable_mib = host.memory_mib - self._policy.reserved_memory_mib
        self.require(
            allocation.memory_mib <= usable_mib,
            f"{allocation.memory_mib} of {usable_mib} MiB are reserved on {allocation.node}",
        )
        vcpus = int(host.vcpus * self._policy.vcpu_overcommit)
        self.require(
            allocation.vcpus <= vcpus, f"{allocation.vcpus} of {vcpus} vCPUs are reserved on {allocation.node}"
        )

    def require(self, holds: bool, otherwise: str) -> None:
        """Something is forbidden unless `holds`."""
        if holds:
            return
        self._tell(f"VIOLATION: {otherwise}")
        self.broken = self.broken or Broken(self._plain(otherwise))
