"""All services of one replica, put together."""

from dataclasses import dataclass

from leeward.clock import Clock, Ids
from leeward_controller.operations.runner import OperationRunner
from leeward_controller.operations.submit import Submitter
from leeward_controller.ports import Agents, Codec
from leeward_controller.records import Records
from leeward_controller.scheduler.placement import PlacementPolicy
from leeward_controller.services.creating import InstanceMaker
from leeward_controller.services.drain import Drain
from leeward_controller.services.flavors import FlavorService
from leeward_controller.services.history import HistoryService
from leeward_controller.services.image_files import ImageFiles
from leeward_controller.services.images import ImageService
from leeward_controller.services.instances import InstanceService
from leeward_controller.services.nodes import NodeService
from leeward_controller.services.operations import OperationService, Peers
from leeward_controller.services.shown import Presenter
from leeward_controller.services.watches import Watches
from leeward_controller.view import ClusterView


@dataclass(frozen=True, slots=True)
class Services:
    """What the public API is served from. `drain.begin()` ends all their streams."""

    instances: InstanceService
    history: HistoryService
    nodes: NodeService
    images: ImageService
    flavors: FlavorService
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
    policy: PlacementPolicy,
    clock: Clock,
    ids: Ids,
) -> Services:
    """Put the services together over the parts of a replica."""
    drain = Drain()
    presenter = Presenter(records=records, runner=runner)
    watches = Watches(records=records, drain=drain)
    instances = InstanceService(
        records=records,
        submitter=submitter,
        presenter=presenter,
        maker=InstanceMaker(records=records, view=view, policy=policy, clock=clock, ids=ids),
        watches=watches,
        clock=clock,
    )
    return Services(
        instances=instances,
        history=HistoryService(records=records, view=view, agents=agents),
        nodes=NodeService(records=records, codec=codec, view=view, instances=instances, watches=watches, clock=clock),
        images=ImageService(records=records, files=ImageFiles(view=view, agents=agents), clock=clock, ids=ids),
        flavors=FlavorService(records=records, clock=clock, ids=ids),
        operations=OperationService(
            records=records,
            view=view,
            runner=runner,
            submitter=submitter,
            presenter=presenter,
            peers=peers,
            drain=drain,
            clock=clock,
        ),
        drain=drain,
    )
