"""Nodes, for operators: look, keep new instances away, attest that one is off, evacuate one."""

import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from leeward import keys, names
from leeward.clock import Clock
from leeward.errors import Conflict, FailedPrecondition, LeewardError, Violation
from leeward_controller.domain.node import FenceProof, Node, NodeDuty, ProofKind
from leeward_controller.domain.node_transitions import with_duty
from leeward_controller.operations.submit import Requester
from leeward_controller.records import FENCES, INSTANCES, NODES, Commit, Records, Stored
from leeward_controller.services.checks import Checks, check_etag
from leeward_controller.services.filters import Fields, parse_filter
from leeward_controller.services.instance_moves import InstanceMoves
from leeward_controller.services.instances import Target
from leeward_controller.services.node_operations import MAX_REASON_LENGTH, NodeOperations, back_in_service
from leeward_controller.services.paging import Listing, PageRequest, list_page
from leeward_controller.services.shown import ShownOperation
from leeward_controller.services.shown_nodes import NodeReader, ShownNode
from leeward_controller.services.watches import Watches, WatchEvent

_ATTEMPTS = 5


_FIELDS: Fields[Node] = {
    "condition": lambda node: node.shown_condition,
    "cordoned": lambda node: "true" if node.cordoned else "false",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An instance that was not evacuated, and why."""

    instance: str
    error: LeewardError


class NodeService:
    """The nodes."""

    def __init__(
        self,
        *,
        records: Records,
        nodes: NodeReader,
        operations: NodeOperations,
        moves: InstanceMoves,
        watches: Watches,
        clock: Clock,
        gives_back: bool,
    ) -> None:
        """`gives_back`: what failover took from a node returns by itself, so an uncordon does not forget it."""
        self._records = records
        self._nodes = nodes
        self._operations = operations
        self._moves = moves
        self._watches = watches
        self._clock = clock
        self._gives_back = gives_back

    async def get(self, name: str) -> ShownNode:
        """One node and all that belongs to it, as it is now. Raises InvalidArgument, NotFound."""
        node_id = names.node(name)
        return await self._nodes.gathered(await self._nodes.read(node_id))

    async def list(self, page: PageRequest) -> tuple[list[ShownNode], Listing[Node]]:
        """One page of all nodes, by name; heartbeats and reservations are as this replica last heard.

        Raises InvalidArgument.
        """
        checks = Checks()
        page.check(checks)
        keep: Callable[[Node], bool] = checks.parsed(
            lambda: parse_filter(page.filter, _FIELDS, mapping=lambda node: node.labels | node.report.labels),
            lambda _: True,
        )
        checks.done()
        listing = await list_page(self._records, NODES, page, keep=keep)
        return [self.at_hand(stored) for stored in listing.items], listing

    async def watch(self, revision: int) -> AsyncGenerator[WatchEvent[Node], None]:
        """Changes of what the controllers hold of nodes; see `Watches.watch`."""
        async with aclosing(self._watches.watch(NODES, prefix=keys.NODES, revision=revision)) as events:
            async for event in events:
                yield event

    def at_hand(self, stored: Stored[Node]) -> ShownNode:
        """A node with what this replica's view says of it."""
        return self._nodes.at_hand(stored)

    async def cordon(self, target: Target, *, reason: str, request_id: str = "") -> ShownNode:
        """Keep new instances away. Raises InvalidArgument, NotFound, Conflict (etag)."""
        checks = Checks()
        too_long = f"has {len(reason)} characters, at most {MAX_REASON_LENGTH} are allowed"
        checks.that(len(reason) <= MAX_REASON_LENGTH, "reason", too_long)

        def change(node: Node) -> Node:
            if node.duty in (NodeDuty.DRAINING, NodeDuty.MAINTENANCE):
                return replace(node, cordon_reason=reason)  # It is kept free already.
            return with_duty(node, NodeDuty.CORDONED, reason=reason)

        return await self._change(target, request_id, checks, change)

    async def uncordon(self, target: Target, requester: Requester, *, bring_back: bool = False) -> ShownNode:
        """Let it take instances again, also after maintenance or a quarantine.

        With `bring_back`, what was drained off it is moved back by an operation, which the node then names. Raises
        InvalidArgument, NotFound, OperationRunning (it is being drained), Conflict (etag).
        """
        if bring_back:
            return await self._operations.bring_back(target, requester)
        change = partial(back_in_service, now=self._clock.now(), gives_back=self._gives_back)
        return await self._change(target, requester.request_id, Checks(), change)

    async def attest_fenced(self, target: Target, requester: Requester, *, boot_id: str, evidence: str) -> FenceProof:
        """Persist an operator's word that this boot of a node is over. Said twice, the first proof stands.

        It takes the place of a proof that does not speak of guests on disks of the node's own.

        Raises InvalidArgument, NotFound, Conflict (etag), FailedPrecondition (its heartbeat is alive, or another boot
        was last seen).
        """
        checks = Checks()
        node_id = checks.parsed(lambda: names.node(target.name), "")
        checks.that(bool(boot_id), "boot_id", "is missing; take the one that GetNode answers")
        checks.that(bool(evidence.strip()), "evidence", "is missing; say how it is known")
        too_long = f"has {len(evidence)} characters, at most {MAX_REASON_LENGTH} are allowed"
        checks.that(len(evidence) <= MAX_REASON_LENGTH, "evidence", too_long)
        checks.request_id(requester.request_id)
        checks.done()
        for attempt in range(_ATTEMPTS):
            stored = await self._nodes.read(node_id)
            check_etag(stored, target.etag, name=target.name)
            key = keys.fence(node_id, boot_id)
            there = await self._records.get(FENCES, key)
            if there is not None and there.value.kind.speaks_of_own_disks:
                return there.value
            await self._check_attestable(stored.value, boot_id)
            proof = FenceProof(
                node=node_id,
                boot_id=boot_id,
                kind=ProofKind.ATTESTATION,
                evidence=evidence,
                time=self._clock.now(),
                observed_by=requester.principal,
            )
            if target.validate_only:
                return proof
            try:
                # The heartbeat's key must still be away when the proof is written, else it would prove nothing.
                commit = Commit().replace(there or Stored(key, proof, 0, 0), proof)
                commit.unchanged(stored).alive(keys.lease(node_id), 0)
                await self._records.commit(commit)
                return proof
            except Conflict:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise Conflict(f"{target.name} keeps changing; try again")

    async def evacuate(
        self, target: Target, requester: Requester, *, target_node: str
    ) -> tuple[tuple[ShownOperation, ...], tuple[Refusal, ...]]:
        """Begin the evacuation of every instance of a fenced node; one that cannot be does not stop the others.

        Raises InvalidArgument, NotFound, Conflict (etag), FailedPrecondition (no fence proof).
        """
        checks = Checks()
        node_id = checks.parsed(lambda: names.node(target.name), "")
        if target_node:
            checks.parsed(lambda: names.node(target_node, field="target_node"), "")
        checks.request_id(requester.request_id)
        checks.done()
        shown = await self._nodes.gathered(await self._nodes.read(node_id))
        check_etag(shown.stored, target.etag, name=target.name)
        if shown.proof is None:
            raise FailedPrecondition(
                f"{target.name} has no fence proof: its instances may still run there",
                reason="NOT_FENCED",
                violations=[Violation("FENCE_PROOF", target.name, "fence it, or attest that it is off")],
                resource=target.name,
            )
        begun: list[ShownOperation] = []
        refused: list[Refusal] = []
        everything = await self._records.list(INSTANCES)
        for stored in everything.items:
            instance = stored.value
            if instance.node != node_id:
                continue
            part = requester
            if requester.request_id:
                part = replace(requester, request_id=_part_of_request(requester.request_id, instance.uid))
            one = Target(instance.name, validate_only=target.validate_only)
            try:
                begun.append(await self._moves.evacuate(one, part, node=target_node, allow_rebuild=False))
            except LeewardError as error:
                refused.append(Refusal(instance.name, error))
        return tuple(begun), tuple(refused)

    async def _check_attestable(self, node: Node, boot_id: str) -> None:
        lease = await self._records.store.get(keys.lease(node.node))
        if lease is not None:
            raise FailedPrecondition(
                f"{node.name} is alive: its heartbeat is there, so it is not off",
                reason="NODE_ALIVE",
                violations=[Violation("HEARTBEAT", node.name, "its heartbeat must have ended")],
                resource=node.name,
            )
        if boot_id != node.report.boot_id:
            raise FailedPrecondition(
                f"{node.name} was last seen in boot {node.report.boot_id}, not {boot_id}; look at it again",
                reason="OTHER_BOOT",
                metadata={"boot_id": node.report.boot_id},
                violations=[Violation("BOOT", node.name, f"was last seen in boot {node.report.boot_id}")],
                resource=node.name,
            )

    async def _change(
        self, target: Target, request_id: str, checks: Checks, change: Callable[[Node], Node]
    ) -> ShownNode:
        node_id = checks.parsed(lambda: names.node(target.name), "")
        checks.request_id(request_id)
        checks.done()
        attempts = 1 if target.etag else _ATTEMPTS
        while True:
            attempts -= 1
            stored = await self._nodes.read(node_id)
            new = change(stored.value)
            if new == stored.value:
                return await self._nodes.gathered(stored)
            check_etag(stored, target.etag, name=target.name)
            if target.validate_only:
                return await self._nodes.gathered(replace(stored, value=new))
            try:
                revision = await self._records.commit(Commit().replace(stored, new))
                return await self._nodes.gathered(Stored(stored.key, new, revision, stored.create_revision))
            except Conflict:
                if attempts <= 0:
                    raise


def _part_of_request(request_id: str, instance_uid: str) -> str:
    """An idempotency key for one instance's share of a request, as long as such keys may be."""
    return f"{instance_uid}/{hashlib.sha256(request_id.encode()).hexdigest()[:32]}"
