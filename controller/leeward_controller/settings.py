"""What a controller is told: a TOML file, `LEEWARD_CONTROLLER_*` in the environment, and flags."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from leeward_controller.core import Policy
from leeward_controller.failover.headroom import HeadroomPolicy, HeadroomRule
from leeward_controller.failover.model import BrakePolicy, Isolation, IsolationPolicy, Timing
from leeward_controller.failover.order import RestartPolicy
from leeward_controller.housekeeping.give_back import GiveBackPolicy
from leeward_controller.scheduler.placement import PlacementPolicy, Ranking

ENVIRONMENT_PREFIX = "LEEWARD_CONTROLLER_"


class FenceSettings(BaseModel):
    """How one node's power is cut: the fence agent's program and its options."""

    model_config = ConfigDict(extra="forbid")

    program: str
    options: dict[str, str] = Field(default_factory=dict)
    timeout_s: float = Field(default=20.0, gt=0, le=600)


class ControllerSettings(BaseModel):
    """Everything a controller can be told. Every replica of a cluster must be given the same policy."""

    model_config = ConfigDict(extra="forbid")

    listen: list[str] = Field(min_length=1, description="host:port to serve on")
    advertise: str = Field(description="host:port under which clients and other replicas reach this one")
    etcd_endpoints: list[str] = Field(min_length=1, description="host:port of the etcd members")
    tls_directory: Path | None = Field(
        default=None, description="certificate, key and CA; none: plain text on loopback"
    )
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    metrics_listen: str = Field(default="", description="host:port for Prometheus; empty: none")
    controller_ttl_s: int = Field(default=5, ge=2, le=60)
    leader_ttl_s: int = Field(default=3, ge=2, le=60)
    drain_s: float = Field(default=5.0, ge=0, le=600, description="how long open calls may take at SIGTERM")
    vcpu_overcommit: float = Field(default=4.0, gt=0, le=64, description="virtual processors for each one of a node")
    reserved_memory_mib: int = Field(default=512, ge=0, description="kept from guests on each node")
    memory_overcommit: float = Field(default=1.0, gt=0, le=16, description="memory promised for what is there")
    disk_overcommit: float = Field(default=4.0, gt=0, le=64, description="disk promised for what is there; it is thin")
    placement: Ranking = Field(default=Ranking.SPREAD, description="SPREAD over nodes, or PACK them full")
    margin_s: float = Field(default=0.5, ge=0.1, le=60, description="added to every bound that safety rests on")
    slot_fresh_s: float = Field(default=2.5, gt=0, le=60)
    brake_more_than: int = Field(default=1, ge=1)
    brake_at_least_share: float = Field(default=0.4, gt=0, le=1)
    isolation: Isolation = Field(
        default=Isolation.KEEP, description="guests of a node cut off from etcd: KEEP them there, or MOVE them"
    )
    isolated_after_s: float = Field(default=60.0, ge=0, le=86_400, description="how long a node is, before MOVE acts")
    parallel_starts_per_node: int = Field(
        default=8, ge=1, le=1000, description="instances of dead nodes started on one node at a time"
    )
    parallel_starts: int = Field(
        default=128, ge=1, le=4096, description="instances of dead nodes started at a time on all nodes together"
    )
    tier_wait_s: float = Field(
        default=120.0, ge=1, le=3600, description="how long restarts of a priority hold up those below it"
    )
    headroom: HeadroomRule = Field(
        default=HeadroomRule.OFF, description="a request that would leave no room to lose a node: OFF, WARN, REFUSE"
    )
    give_back: bool = Field(
        default=False, description="move instances back to a node that has died, when it is in service again"
    )
    give_back_after_s: float = Field(
        default=300.0, ge=0, le=7 * 86_400, description="how long such a node has to be in service before"
    )
    survive_node_losses: int = Field(default=1, ge=1, le=16, description="how many nodes at once headroom is kept for")
    deleted_retention_s: float = Field(
        default=0.0, ge=0, le=365 * 86_400, description="how long deleted instances can be brought back"
    )
    fence: dict[str, FenceSettings] = Field(default_factory=dict, description="by node")

    def policy(self) -> Policy:
        """The same, as the core takes it."""
        return Policy(
            placement=PlacementPolicy(
                vcpu_overcommit=self.vcpu_overcommit,
                reserved_memory_mib=self.reserved_memory_mib,
                memory_overcommit=self.memory_overcommit,
                disk_overcommit=self.disk_overcommit,
                ranking=self.placement,
            ),
            timing=Timing(slot_fresh_s=self.slot_fresh_s, margin_s=self.margin_s),
            brake=BrakePolicy(self.brake_more_than, self.brake_at_least_share),
            isolation=IsolationPolicy(self.isolation, self.isolated_after_s),
            restarts=RestartPolicy(
                parallel_starts_per_node=self.parallel_starts_per_node,
                parallel_starts=self.parallel_starts,
                tier_wait_s=self.tier_wait_s,
            ),
            headroom=HeadroomPolicy(self.headroom, self.survive_node_losses),
            give_back=GiveBackPolicy(self.give_back, self.give_back_after_s),
            controller_ttl_s=self.controller_ttl_s,
            leader_ttl_s=self.leader_ttl_s,
            deleted_retention_s=self.deleted_retention_s,
        )
