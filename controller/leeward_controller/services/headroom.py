"""Whether a request leaves room for the loss of a node, asked before an operation begins."""

from collections.abc import Hashable, Iterator
from dataclasses import replace

import structlog

from leeward import keys
from leeward.errors import ResourceExhausted, Violation
from leeward_controller.domain.group import GroupPolicy
from leeward_controller.domain.instance import Instance, InstanceState, Resources
from leeward_controller.domain.node import Reservation
from leeward_controller.failover.headroom import Guest, HeadroomPolicy, HeadroomRule, Room, Shortfall, shortfalls
from leeward_controller.scheduler.candidates import candidates, shared_pools
from leeward_controller.scheduler.filters import usable_memory_mib, why_not
from leeward_controller.scheduler.model import Candidate, PlacementPolicy
from leeward_controller.scheduler.requests import request_for
from leeward_controller.view import ClusterView

log = structlog.get_logger()

_MOST_TOLD = 8
_NOTHING = Resources(0, 0, 0)


class Headroom:
    """Looks by what this replica knows now, and reserves nothing: requests in the same instant do not see each other.

    What is already promised counts whether its guest runs or not, since failover gives every instance a new node; so
    starting one changes nothing. An instance on a disk of its node's own cannot be restarted elsewhere and is left out.
    """

    def __init__(self, *, view: ClusterView, placement: PlacementPolicy, policy: HeadroomPolicy) -> None:
        self._view = view
        self._placement = placement
        self._policy = policy

    def check(self, instance: Instance, *, node: str, pool_id: str, resources: Resources) -> tuple[str, ...]:
        """Think of the instance as being on `node` with these resources: what there is to warn of, if the rule is WARN.

        Raises ResourceExhausted (reason NO_HEADROOM, a violation a node that could not be lost) if the rule is REFUSE.
        """
        if self._policy.rule is HeadroomRule.OFF or not self._view.synced:
            return ()
        short = self.shortfalls(replace(instance, node=node, pool_id=pool_id, resources=resources))
        if not short:
            return ()
        some = "; ".join(f"nodes/{each.node}: {each.told}" for each in short[:_MOST_TOLD])
        told = f"{instance.name} would leave too little room for the loss of a node: {some}"
        if self._policy.rule is HeadroomRule.WARN:
            log.warning("headroom.lacking", instance=instance.name, why=told)
            return (told,)
        raise ResourceExhausted(
            told,
            reason="NO_HEADROOM",
            violations=[Violation("HEADROOM", f"nodes/{each.node}", each.told) for each in short],
            resource=instance.name,
        )

    def shortfalls(self, added: Instance | None = None) -> tuple[Shortfall, ...]:
        """The nodes that could not be lost, if `added` was as it says."""
        nodes = [each for each in candidates(self._view) if each.alive]
        rooms, guests = [], []
        shared, allowed = shared_pools(self._view), _Allowed(self._view, nodes, self._placement)
        for each in nodes:
            held = list(self._held(each, added))
            rooms.append(
                Room(
                    each.node,
                    usable_memory_mib(each, self._placement) - sum(one.memory_mib for one, _ in held),
                    int(each.vcpus * self._placement.vcpu_overcommit) - sum(one.vcpus for one, _ in held),
                )
            )
            for one, instance in held:
                if instance is not None and instance.restart_on_failure and one.pool_id in shared:
                    apart = self._apart(instance)
                    where = allowed.nodes(instance)
                    guests.append(Guest(one.instance, each.node, one.memory_mib, one.vcpus, where, apart))
        return shortfalls(rooms, guests, losses=self._policy.survive_node_losses)

    def _held(self, node: Candidate, added: Instance | None) -> Iterator[tuple[Reservation, Instance | None]]:
        for one in node.allocation.reservations:
            if added is None or one.instance_uid != added.uid:
                stored = self._view.instances.get(keys.instance(one.instance))
                yield one, stored.value if stored is not None else None
        if added is not None and added.node == node.node:
            size = added.resources
            yield (
                Reservation(added.uid, added.name, size.vcpus, size.memory_mib, size.disk_gib, added.pool_id),
                added,
            )

    def _apart(self, instance: Instance) -> str:
        stored = self._view.groups.get(keys.group(instance.group)) if instance.group else None
        return instance.group if stored is not None and stored.value.policy is GroupPolicy.ANTI_AFFINITY else ""


class _Allowed:
    """The nodes that instances may go to by rules that do not depend on room, found out once for all that ask alike."""

    def __init__(self, view: ClusterView, nodes: list[Candidate], policy: PlacementPolicy) -> None:
        self._view = view
        self._nodes = nodes
        self._policy = policy
        self._known: dict[Hashable, frozenset[str]] = {}

    def nodes(self, instance: Instance) -> frozenset[str]:
        """By their names."""
        suspended = instance.state is InstanceState.SUSPENDED
        labels = frozenset(instance.placement.required_labels.items())
        key = (instance.pool_id, labels, instance.cpu_model, instance.node if suspended else "")
        if key not in self._known:
            # With other members out of sight and nothing asked for, what is left are the rules.
            request = request_for(self._view, replace(instance, group="", data_disks_gib=()), resources=_NOTHING)
            fitting = (each.node for each in self._nodes if not why_not(each, request, self._policy))
            self._known[key] = frozenset(fitting)
        return self._known[key]
