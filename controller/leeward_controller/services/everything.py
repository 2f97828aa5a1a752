"""All services of one replica, put together."""

from dataclasses import dataclass

from leeward.clock import Clock, Ids
from leeward_controller.failover.headroom import HeadroomPolicy
from leeward_controller.operations.admission import Gatekeeper
from leeward_controller.operations.runner import OperationRunner
from leeward_controller.operations.submit import Submitter
from leeward_controller.ports import Agents, Codec, Fence
from leeward_controller.records import Records
from leeward_controller.scheduler.placement import PlacementPolicy
from leeward_controller.services.audit import AuditService
from leeward_controller.services.backup_policies import BackupPolicyService
from leeward_controller.services.beginning import Beginning
from leeward_controller.services.consoles import Consoles
from leeward_controller.services.creating import InstanceMaker
from leeward_controller.services.drain import Drain
from leeward_controller.services.failover_control import FailoverControl
from leeward_controller.services.failovers import FailoverService
from leeward_controller.services.fitting import Fitting
from leeward_controller.services.flavors import FlavorService
from leeward_controller.services.groups import GroupService
from leeward_controller.services.headroom import Headroom
from leeward_controller.services.history import HistoryService
from leeward_controller.services.image_files import ImageFiles
from leeward_controller.services.images import ImageService
from leeward_controller.services.instance_images import InstanceImages
from leeward_controller.services.instance_moves import InstanceMoves
from leeward_controller.services.instance_power import InstancePower
from leeward_controller.services.instances import InstanceService
from leeward_controller.services.leftovers import LeftoverService
from leeward_controller.services.locking import Locking
from leeward_controller.services.node_operations import NodeOperations
from leeward_controller.services.nodes import NodeService
from leeward_controller.services.operations import OperationService, Peers
from leeward_controller.services.projects import ProjectService
from leeward_controller.services.shown import Presenter
from leeward_controller.services.shown_nodes import NodeReader
from leeward_controller.services.watches import Watches
from leeward_controller.view import ClusterView


@dataclass(frozen=True, slots=True)
class InstanceServices:
    """All that the public API does with instances."""

    records: InstanceService
    power: InstancePower
    moves: InstanceMoves
    images: InstanceImages
    locking: Locking
    consoles: Consoles
    history: HistoryService


@dataclass(frozen=True, slots=True)
class Services:
    """What the public API is served from. `drain.begin()` ends all their streams."""

    instances: InstanceServices
    nodes: NodeService
    node_operations: NodeOperations
    images: ImageService
    flavors: FlavorService
    backup_policies: BackupPolicyService
    audit: AuditService
    failover_control: FailoverControl
    leftovers: LeftoverService
    failovers: FailoverService
    groups: GroupService
    projects: ProjectService
    operations: OperationService
    drain: Drain


def build_services(
    *,
    records: Records,
    codec: Codec,
    view: ClusterView,
    runner: OperationRunner,
    submitter: Submitter,
    agents: Agents,
    peers: Peers,
    fence: Fence,
    policy: PlacementPolicy,
    clock: Clock,
    ids: Ids,
    deleted_retention_s: float = 0.0,
    headroom_policy: HeadroomPolicy | None = None,
    gives_back: bool = False,
) -> Services:
    """Put the services together over the parts of a replica."""
    drain = Drain()
    nodes = NodeReader(records=records, codec=codec, view=view)
    presenter = Presenter(records=records, runner=runner, nodes=nodes, clock=clock)
    watches = Watches(records=records, drain=drain)
    headroom = Headroom(view=view, placement=policy, policy=headroom_policy or HeadroomPolicy())
    fitting = Fitting(view=view, policy=policy, headroom=headroom)
    instances = InstanceService(
        records=records,
        submitter=submitter,
        presenter=presenter,
        maker=InstanceMaker(records=records, fitting=fitting, clock=clock, ids=ids),
        watches=watches,
        clock=clock,
    )
    beginning = Beginning(instances=instances, submitter=submitter, presenter=presenter)
    moves = InstanceMoves(records=records, beginning=beginning, fitting=fitting)
    node_operations = NodeOperations(
        records=records,
        nodes=nodes,
        view=view,
        submitter=submitter,
        presenter=presenter,
        fence=fence,
        policy=policy,
        clock=clock,
        gives_back=gives_back,
    )
    return Services(
        instances=InstanceServices(
            records=instances,
            power=InstancePower(beginning=beginning, deleted_retention_s=deleted_retention_s),
            moves=moves,
            images=InstanceImages(records=records, beginning=beginning, fitting=fitting),
            locking=Locking(instances=instances, clock=clock),
            consoles=Consoles(records=records, view=view, agents=agents, drain=drain),
            history=HistoryService(records=records),
        ),
        nodes=NodeService(
            records=records,
            nodes=nodes,
            operations=node_operations,
            moves=moves,
            watches=watches,
            clock=clock,
            gives_back=gives_back,
        ),
        node_operations=node_operations,
        images=ImageService(
            records=records,
            files=ImageFiles(view=view, agents=agents),
            gatekeeper=Gatekeeper(records=records, view=view),
            clock=clock,
            ids=ids,
        ),
        flavors=FlavorService(records=records, clock=clock, ids=ids),
        backup_policies=BackupPolicyService(records=records, clock=clock, ids=ids),
        audit=AuditService(records=records, view=view, agents=agents),
        failover_control=FailoverControl(records=records, clock=clock),
        leftovers=LeftoverService(records=records, view=view, agents=agents),
        failovers=FailoverService(records=records, view=view, clock=clock),
        groups=GroupService(records=records, clock=clock, ids=ids),
        projects=ProjectService(records=records, clock=clock, ids=ids),
        operations=OperationService(
            records=records,
            view=view,
            runner=runner,
            submitter=submitter,
            presenter=presenter,
            nodes=nodes,
            peers=peers,
            drain=drain,
            clock=clock,
        ),
        drain=drain,
    )
