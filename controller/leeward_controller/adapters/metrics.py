"""What Prometheus is told of a replica, read from its view at each scrape."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from leeward_controller.core import ControllerCore
from leeward_controller.domain.instance import InstanceState
from leeward_controller.domain.node import NodeCondition
from leeward_controller.domain.operation import OperationType
from leeward_controller.failover.meter import FailoverMeter, Histogram


class ControllerCollector(Collector):
    """The cluster as this replica sees it, and the failovers that it has seen to their end.

    Called from the metrics server's own thread.
    """

    def __init__(self, core: ControllerCore) -> None:
        self._core = core

    def collect(self) -> Iterator[Metric]:
        """One family a question: how many nodes, instances, operations; who leads; is the view fed."""
        view = self._core.view
        # Copied in one step each, since the event loop goes on changing them.
        nodes = Counter(stored.value.shown_condition for stored in list(view.nodes.values()))
        instances = Counter(stored.value.state for stored in list(view.instances.values()))
        running = Counter(s.value.type for s in list(view.unfinished.values()))
        yield _by("leeward_nodes", "Nodes by condition.", "condition", list(NodeCondition), nodes)
        yield _by("leeward_instances", "Instances by state.", "state", list(InstanceState), instances)
        yield _by("leeward_operations_running", "Operations not ended, by type.", "type", list(OperationType), running)
        yield GaugeMetricFamily(
            "leeward_operations_driven", "Operations that this replica drives.", len(self._core.runner.running)
        )
        yield GaugeMetricFamily("leeward_leader", "1 while this replica leads.", int(self._core.leadership.epoch > 0))
        yield GaugeMetricFamily("leeward_view_synced", "1 while etcd feeds this replica.", int(view.synced))
        braked = view.brake is not None and view.brake.value.holds
        yield GaugeMetricFamily("leeward_brake", "1 while the brake holds automatic evacuation.", int(braked))
        armed = int(view.disarm is None)
        yield GaugeMetricFamily("leeward_failover_armed", "1 while nodes are fenced by themselves.", armed)
        yield from _failovers(self._core.failover_meter)


def _failovers(meter: FailoverMeter) -> Iterator[Metric]:
    """Of failovers that have ended while this replica led; sum over replicas for the cluster."""
    ended = CounterMetricFamily(
        "leeward_failovers", "Failovers that have ended, by kind of proof and outcome.", labels=["proof", "outcome"]
    )
    for (proof, outcome), count in sorted(dict(meter.failovers).items()):
        ended.add_metric([proof, outcome], count)
    yield ended
    instances = CounterMetricFamily(
        "leeward_failover_instances", "Instances of lost nodes, by what became of them.", labels=["outcome"]
    )
    for outcome, count in sorted(dict(meter.instances).items()):
        instances.add_metric([outcome], count)
    yield instances
    yield _histogram("detect", "From a lost lease until both heartbeats were found to be lost.", meter.detect)
    yield _histogram("prove", "From a lost lease until there was a proof.", meter.prove)
    yield _histogram("restart", "From a lost lease until an instance was restarted elsewhere.", meter.restart)


def _histogram(what: str, text: str, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(
        f"leeward_failover_{what}_seconds", text, buckets=histogram.cumulative(), sum_value=histogram.sum_s
    )


def _by(name: str, text: str, label: str, values: Sequence[str], counted: "Mapping[Any, int]") -> GaugeMetricFamily:
    """Every value is told, also those at 0, so that a graph does not end where a state is left."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for value in values:
        family.add_metric([value], counted[value])
    return family
