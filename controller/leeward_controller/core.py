"""One controller replica, put together from its ports. The same whether it is real or simulated."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from leeward import __version__, keys
from leeward.clock import Clock, Ids, Rng
from leeward.store.port import Store
from leeward_controller.domain.cluster import Controller
from leeward_controller.failover.execute import Executor
from leeward_controller.failover.headroom import HeadroomPolicy
from leeward_controller.failover.keeper import FailoverKeeper
from leeward_controller.failover.loop import FailoverLoop
from leeward_controller.failover.meter import FailoverMeter
from leeward_controller.failover.model import BrakePolicy, IsolationPolicy, Timing
from leeward_controller.failover.observe import SlotObservers
from leeward_controller.failover.order import RestartPolicy
from leeward_controller.failover.pills import Pills
from leeward_controller.failover.restarts import Restarts
from leeward_controller.failover.sync import GuestSync
from leeward_controller.housekeeping.backups import Backups
from leeward_controller.housekeeping.duty import Duty
from leeward_controller.housekeeping.give_back import GiveBack, GiveBackPolicy
from leeward_controller.housekeeping.image_sweep import ImageSweep
from leeward_controller.housekeeping.loop import Housekeeping
from leeward_controller.housekeeping.old_operations import OldOperations
from leeward_controller.housekeeping.timers import Timers
from leeward_controller.leadership import Leadership
from leeward_controller.operations.admission import Gatekeeper
from leeward_controller.operations.context import Surroundings
from leeward_controller.operations.runner import OperationRunner
from leeward_controller.operations.submit import Submitter
from leeward_controller.ports import Agents, Codec, Fence
from leeward_controller.records import Records
from leeward_controller.registration import HeldKey
from leeward_controller.scheduler.placement import PlacementPolicy
from leeward_controller.view import ClusterView


@dataclass(frozen=True, slots=True)
class Policy:
    """How this cluster is run; every replica must be given the same."""

    placement: PlacementPolicy = field(default_factory=PlacementPolicy)
    timing: Timing = field(default_factory=Timing)
    brake: BrakePolicy = field(default_factory=BrakePolicy)
    isolation: IsolationPolicy = field(default_factory=IsolationPolicy)
    restarts: RestartPolicy = field(default_factory=RestartPolicy)
    headroom: HeadroomPolicy = field(default_factory=HeadroomPolicy)
    give_back: GiveBackPolicy = field(default_factory=GiveBackPolicy)
    controller_ttl_s: int = 5
    leader_ttl_s: int = 3
    deleted_retention_s: float = 0.0


class ControllerCore:
    """A replica without its network face: state, operations, leadership. `address` is where its public API answers."""

    def __init__(
        self,
        *,
        store: Store,
        codec: Codec,
        agents: Agents,
        fence: Fence,
        clock: Clock,
        ids: Ids,
        rng: Rng,
        address: str,
        policy: Policy | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self.failover_meter = FailoverMeter()
        self._agents, self.fence, self._clock, self._ids = agents, fence, clock, ids
        self._address = address
        self._start_time = clock.now()
        self._id = ids.new()
        self.view = ClusterView(store=store, codec=codec, clock=clock)
        self.records = Records(store=store, codec=codec, ids=ids, clock=clock, picture=self.view)
        self.view.recall_by(self.records.recall)
        self._surroundings = Surroundings(self.records, self.view, agents, clock, rng, self.policy.placement, fence)
        self.runner = OperationRunner(
            controller_id=self._id, surroundings=self._surroundings, children=lambda: self.submitter
        )
        self.submitter = Submitter(
            records=self.records,
            runner=self.runner,
            gatekeeper=Gatekeeper(records=self.records, view=self.view),
            clock=clock,
            ids=ids,
        )
        self._registration = HeldKey(
            key=keys.controller(self._id),
            value=self._identity,
            ttl_s=self.policy.controller_ttl_s,
            records=self.records,
            clock=clock,
            gained=self._registered,
            lost=self.runner.unregistered,
        )
        self.leadership = Leadership(
            identity=lambda: replace(self._identity(), lead_time=clock.now()),
            ttl_s=self.policy.leader_ttl_s,
            records=self.records,
            view=self.view,
            clock=clock,
            duties=self._duties,
        )

    @property
    def controller_id(self) -> str:
        """This replica's id, new at each start."""
        return self._id

    def _identity(self) -> Controller:
        return Controller(self._id, self._address, __version__, self._start_time)

    async def _registered(self, create_revision: int) -> None:
        self.runner.registered(controller_id=self._id, create_revision=create_revision)

    def _duties(self, epoch: int) -> Sequence[Callable[[], Awaitable[None]]]:
        executor = Executor(
            surroundings=self._surroundings,
            submitter=self.submitter,
            fence=self.fence,
            pills=Pills(view=self.view, agents=self._agents, clock=self._clock, ids=self._ids),
            ids=self._ids,
            leader_epoch=epoch,
            controller_id=self._id,
            timing=self.policy.timing,
            restarts=Restarts(
                view=self.view,
                clock=self._clock,
                timing=self.policy.timing,
                policy=self.policy.restarts,
                placement=self.policy.placement,
            ),
        )
        failover = FailoverLoop(
            surroundings=self._surroundings,
            observers=SlotObservers(view=self.view, agents=self._agents, clock=self._clock),
            executor=executor,
            timing=self.policy.timing,
            brake=self.policy.brake,
            isolation=self.policy.isolation,
        )
        sync = GuestSync(surroundings=self._surroundings, submitter=self.submitter, leader_epoch=epoch)
        duties: tuple[Duty, ...] = (
            OldOperations(surroundings=self._surroundings, leader_epoch=epoch),
            Timers(surroundings=self._surroundings, submitter=self.submitter, leader_epoch=epoch),
            Backups(surroundings=self._surroundings, submitter=self.submitter, leader_epoch=epoch),
            ImageSweep(surroundings=self._surroundings),
            GiveBack(
                surroundings=self._surroundings,
                submitter=self.submitter,
                leader_epoch=epoch,
                policy=self.policy.give_back,
            ),
            FailoverKeeper(
                surroundings=self._surroundings,
                leader_epoch=epoch,
                controller_id=self._id,
                meter=self.failover_meter,
            ),
        )
        housekeeping = Housekeeping(surroundings=self._surroundings, duties=duties)
        return (failover.run, sync.run, housekeeping.run)

    def abandon(self) -> None:
        """Make the end of `run` that of a killed process: the keys are not given up but wait for their leases."""
        self._registration.abandon()
        self.leadership.abandon()

    async def run(self) -> None:
        """Serve until cancelled; then give up the keys, upon which other replicas take over this one's operations.

        Any part that fails ends all.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self.view.run())
            group.create_task(self._registration.run())
            group.create_task(self.leadership.run())
