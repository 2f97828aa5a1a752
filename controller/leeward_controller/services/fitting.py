"""Whether any node can take an instance, asked before an operation begins: what fits nowhere is refused at once."""

from leeward.errors import FailedPrecondition, NodeUnfit, Violation
from leeward_controller.domain.instance import Instance, Resources
from leeward_controller.scheduler.candidates import candidates, report_of
from leeward_controller.scheduler.cpu import BASELINE, baseline
from leeward_controller.scheduler.placement import PlacementPolicy, choose, plan_placement
from leeward_controller.scheduler.requests import request_for
from leeward_controller.services.headroom import Headroom
from leeward_controller.view import ClusterView


class Fitting:
    """Looks by what this replica knows of the nodes now. The operation itself chooses, by what it finds then."""

    def __init__(self, *, view: ClusterView, policy: PlacementPolicy, headroom: Headroom) -> None:
        self._view = view
        self._policy = policy
        self._headroom = headroom

    def check(
        self,
        instance: Instance,
        *,
        named: str = "",
        leaving: bool = False,
        resources: Resources | None = None,
        for_live: bool = False,
    ) -> tuple[str, ...]:
        """What there is to warn of, a sentence each.

        Raises NodeUnfit (`named` cannot take it), NoNodeFits (none can; one violation a node), ResourceExhausted (it
        takes more than it did, and the policy on headroom does not allow that).

        It takes `resources`, by default those it has; `leaving` looks for another node than the one it is on.
        """
        if leaving and named and named == instance.node:
            why = "the instance is on it already"
            raise NodeUnfit(
                f"nodes/{named} cannot take it: {why}", violations=[Violation("NODE", f"nodes/{named}", why)]
            )
        if not self._view.synced:
            return ()  # Nothing is known of the nodes just now; the operation will see.
        excluded = ((instance.node, "it is the node being left"),) if leaving else ()
        request = request_for(
            self._view, instance, named=named, excluded=excluded, resources=resources, for_live=for_live
        )
        place = choose(plan_placement(candidates(self._view), request, policy=self._policy), request)
        if leaving:
            return ()
        return self._headroom.check(
            instance, node=place.node, pool_id=place.pool_id, resources=resources or instance.resources
        )

    def cpu_model(self, wanted: str) -> str:
        """The model to record for the one asked for: `baseline` is the best one that all nodes have now.

        Raises FailedPrecondition when they have none in common.
        """
        if wanted != BASELINE:
            return wanted
        model = baseline(report_of(self._view, stored.value).cpu for stored in self._view.nodes.values())
        if not model:
            raise FailedPrecondition(
                "the nodes have no named processor model in common; name one, or none for the host's own",
                reason="NO_BASELINE",
                violations=[Violation("CPU", "nodes", "have no named processor model in common")],
            )
        return model
