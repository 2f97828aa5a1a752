"""What the scheduler decides from, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from leeward.agent.types import CpuReport
from leeward_controller.domain.instance import Resources, Storage
from leeward_controller.domain.node import NodeAllocation, NodeCondition
from leeward_controller.scheduler.groups import Companions


class Ranking(StrEnum):
    """Which of the nodes that fit is taken first."""

    SPREAD = "SPREAD"  # The one with the largest share of free memory.
    PACK = "PACK"  # The one with the smallest share of free memory that has room.


@dataclass(frozen=True, slots=True)
class PlacementPolicy:
    """How far nodes and pools may be promised, and which of those that fit is taken first.

    Guests share processors, and disks are thin; memory is what it is unless the operator knows better.
    """

    vcpu_overcommit: float = 4.0
    reserved_memory_mib: int = 512
    memory_overcommit: float = 1.0
    disk_overcommit: float = 4.0
    ranking: Ranking = Ranking.SPREAD


@dataclass(frozen=True, slots=True)
class CandidatePool:
    """A working pool of a node. `taken_elsewhere_gib` is promised in it by other nodes' instances.

    A capacity of 0 is one that is not known, and is not checked.
    """

    pool_id: str
    shared: bool = True
    capacity_gib: int = 0
    taken_elsewhere_gib: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as the scheduler sees it, with the pools that work."""

    node: str
    condition: NodeCondition
    alive: bool
    cordoned: bool
    vcpus: int
    memory_mib: int
    pools: tuple[CandidatePool, ...]
    allocation: NodeAllocation
    draining: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    cpu: CpuReport = field(default_factory=CpuReport)


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What has to be placed. `node` names one node or is empty; `excluded` maps nodes to why they are out already.

    With `pool_id` it has to be that pool. Without, any pool of the kind that `storage` asks for will do; shared ones
    come first unless it `prefers_local`. On `home_node` its disks stay in `home_pool_id`. `source_cpu` is what a guest
    that is not to notice the move has got now.
    """

    instance_uid: str
    resources: Resources
    pool_id: str = ""
    node: str = ""
    excluded: tuple[tuple[str, str], ...] = ()
    data_disks_gib: int = 0
    storage: Storage = Storage.ANY
    prefers_local: bool = False
    home_node: str = ""
    home_pool_id: str = ""
    required_labels: Mapping[str, str] = field(default_factory=dict)
    preferred_labels: Mapping[str, str] = field(default_factory=dict)
    cpu_model: str = ""
    source_cpu: CpuReport | None = None
    companions: Companions | None = None

    @property
    def disk_gib(self) -> int:
        """All its disks together."""
        return self.resources.disk_gib + self.data_disks_gib


@dataclass(frozen=True, slots=True)
class Place:
    """Where an instance goes: the node, and the pool of it that its disks are to be in."""

    node: str
    pool_id: str


@dataclass(frozen=True, slots=True)
class Placement:
    """The answer: the places that fit, best first, and why each other node does not.

    Among the first `alike` of them any is as good as the best.
    """

    ranked: tuple[Place, ...]
    rejected: dict[str, str]
    alike: int = 1
