"""What Prometheus is told of a replica, read from its view at each scrape."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from leeward_controller.core import ControllerCore
from leeward_controller.domain.instance import InstanceState
from leeward_controller.domain.node import NodeCondition
from leeward_controller.domain.operation import OperationType


class ControllerCollector(Collector):
    """Gauges of the cluster as this replica sees it. Called from the metrics server's own thread."""

    def __init__(self, core: ControllerCore) -> None:
        self._core = core

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One family a question: how many nodes, instances, operations; who leads; is the view fed."""
        view = self._core.view
        # Copied in one step each, since the event loop goes on changing them.
        nodes = Counter(stored.value.shown_condition for stored in list(view.nodes.values()))
        instances = Counter(stored.value.state for stored in list(view.instances.values()))
        running = Counter(s.value.type for s in list(view.operations.values()) if not s.value.phase.ended)
        yield _by("leeward_nodes", "Nodes by condition.", "condition", list(NodeCondition), nodes)
        yield _by("leeward_instances", "Instances by state.", "state", list(InstanceState), instances)
        yield _by("leeward_operations_running", "Operations not ended, by type.", "type", list(OperationType), running)
        yield GaugeMetricFamily(
            "leeward_operations_driven", "Operations that this replica drives.", len(self._core.runner.running)
        )
        yield GaugeMetricFamily("leeward_leader", "1 while this replica leads.", int(self._core.leadership.epoch > 0))
        yield GaugeMetricFamily("leeward_view_synced", "1 while etcd feeds this replica.", int(view.synced))
        yield GaugeMetricFamily("leeward_brake", "1 while automatic evacuation is held.", int(view.brake is not None))


def _by(name: str, text: str, label: str, values: Sequence[str], counted: "Mapping[Any, int]") -> GaugeMetricFamily:
    """Every value is told, also those at 0, so that a graph does not end where a state is left."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for value in values:
        family.add_metric([value], counted[value])
    return family
