"""Fence a node: seek a proof that one boot of it is over, now, and the cheapest first.

What costs nothing comes first: a proof that is there already. Then its power is cut, where there is a device for it;
that also works on a node which only lost etcd, and which failover would leave alone. Else the leader's own watch may
yet find a proof: that both heartbeats are silent, that another boot is there, or, of one that only lost etcd, that it
has taken the poison pill which the leader leaves for it while this operation waits.
"""

from leeward import keys
from leeward.errors import Conflict, FailedPrecondition, Violation
from leeward_controller.domain.node import FenceProof, Node, NodeCondition, ProofKind
from leeward_controller.domain.node_operation import FenceNodeArguments
from leeward_controller.domain.operation import OperationType
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.step import Advance, Definition, Step
from leeward_controller.records import FENCES, Commit

_SLACK_S = 15.0
_LOOK_S = 0.5


def _arguments(context: StepContext) -> FenceNodeArguments:
    arguments = context.operation.arguments
    assert isinstance(arguments, FenceNodeArguments)
    return arguments


async def seek(context: StepContext) -> Advance:
    """Have a proof. Raises FailedPrecondition (reason NODE_ALIVE, NO_PROOF) with all that was tried."""
    if await _proof(context) is not None:
        return Advance()
    _check_alive(context)
    tried = [await _by_power(context)]
    if await _proof(context) is None:
        tried.append(await _by_waiting(context))
    if await _proof(context) is None:
        name = context.node.name
        raise FailedPrecondition(
            f"no proof could be had that {name} runs no guest: {'; '.join(tried)}. "
            f"When it is off and stays off: leeward node attest-fenced {context.node.node}",
            reason="NO_PROOF",
            violations=[Violation("FENCE_PROOF", f"{name}#{number}", how) for number, how in enumerate(tried, start=1)],
            resource=name,
        )
    return Advance()


async def _proof(context: StepContext) -> FenceProof | None:
    key = keys.fence(context.node.node, _arguments(context).boot_id)
    found = await context.surroundings.records.get(FENCES, key)
    return None if found is None else found.value


def _check_alive(context: StepContext) -> None:
    if _is_alive(context) and not _arguments(context).force:
        raise node_alive(context.node)


def _is_alive(context: StepContext) -> bool:
    lease = context.view.leases.get(context.node.node)
    return lease is not None and lease.report.boot_id == _arguments(context).boot_id


def node_alive(node: Node) -> FailedPrecondition:
    """That a node is not to be fenced because it is alive."""
    return FailedPrecondition(
        f"{node.name} is alive: its heartbeat is there. Drain it, or use force to cut its power all the same",
        reason="NODE_ALIVE",
        violations=[Violation("HEARTBEAT", node.name, "its heartbeat must have ended, or force be asked for")],
        resource=node.name,
    )


async def _by_power(context: StepContext) -> str:
    """Cut the power and record the proof; what came of it, in words."""
    node_id, fence = context.node.node, context.surroundings.fence
    if not fence.covers(node_id):
        return "power: no fence device is configured for it"
    if node_id in context.view.leases and not _is_alive(context):
        return "power: another boot of it is there already"
    outcome = await fence.power_off(node_id)
    if not outcome.confirmed_off:
        return f"power: {outcome.evidence}"
    # A heartbeat that goes on says that the device lied, or cut another host's power.
    if not await context.view.wait_for(lambda: not _is_alive(context), timeout_s=_longest_beat_s(context.node)):
        return f"power: {outcome.evidence}, but its heartbeat goes on"
    await _record(context, ProofKind.POWER_OFF, outcome.evidence)
    return f"power: {outcome.evidence}"


def _longest_beat_s(node: Node) -> float:
    return node.report.lease_ttl_s + _SLACK_S


async def _record(context: StepContext, kind: ProofKind, evidence: str) -> None:
    """Persist a proof, unless somebody was faster, or the node is back."""
    node_id, boot_id = context.node.node, _arguments(context).boot_id
    clock, operation = context.surroundings.clock, context.operation
    proof = FenceProof(node_id, boot_id, kind, evidence, clock.now(), operation.owner)
    commit = Commit().create(keys.fence(node_id, boot_id), proof).alive(keys.lease(node_id), 0)
    try:
        await context.surroundings.records.commit(commit)
    except Conflict:
        # The look that follows finds the other's proof; one that is back in another boot is proved by the leader.
        return


async def _by_waiting(context: StepContext) -> str:
    """Give the leader's watch the time that silence needs; what came of it, in words."""
    node_id, boot_id = context.node.node, _arguments(context).boot_id
    report = context.node.report
    needed_s = report.lease_ttl_s + report.guard_delay_s + _SLACK_S

    def settled() -> bool:
        return keys.fence(node_id, boot_id) in context.view.fences or _is_alive(context)

    deadline_s = context.surroundings.clock.monotonic_s() + needed_s
    while not settled() and context.surroundings.clock.monotonic_s() < deadline_s:
        await context.view.wait_for(settled, timeout_s=_LOOK_S)
    return f"silence: {_why_not_silent(context)}"


def _why_not_silent(context: StepContext) -> str:
    if _is_alive(context):
        return "its heartbeat is there"
    stored = context.view.nodes.get(keys.node(context.node.node))
    if stored is not None and stored.value.condition is NodeCondition.ISOLATED:
        return "its storage heartbeat beats, so its guests may run, and it has not taken the poison pill left for it"
    if not context.node.report.guard_armed:
        return "its guard was not armed, so silence proves nothing"
    return "nobody could tell of its storage heartbeat for long enough"


FENCE_NODE = Definition(
    type=OperationType.FENCE_NODE,
    steps=(Step("seek_proof", seek, deadline_s=300.0),),
)
