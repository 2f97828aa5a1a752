"""What to tell of a node for which no proof is to be had, so that an operator can help. Pure."""

from leeward_controller.failover.model import NodeSnapshot, Timing


def slot_needs_s(node: NodeSnapshot, timing: Timing) -> float:
    """For how long its storage slot has to be silent before nothing can run there."""
    return node.lease_ttl_s + node.guard_delay_s + timing.margin_s


def request_for_help(node: NodeSnapshot, missing_s: float, *, timing: Timing) -> str:
    """What stands in the way of a proof, and what an operator can do; empty while one may still come by itself.

    It says nothing that changes while it is true, so it is recorded once.
    """
    if node.can_power_off and not node.power_trouble:
        return ""
    why = _why_silence_is_no_proof(node, missing_s, timing=timing)
    if not why:
        return ""
    power = f"its power could not be cut: {node.power_trouble}" if node.can_power_off else "it has no fence device"
    return (
        f"no proof that it runs no guest: {why}; {power}. Bring it back, or see that it is off and stays off, then: "
        f"leeward node attest-fenced {node.node}"
    )


def request_for_help_with_isolated(node: NodeSnapshot) -> str:
    """Why an isolated node does not give up its guests, and what an operator can do; empty while it may still do so."""
    if not node.guard_armed:
        why = "its guard was not armed, so its word that none is left would prove nothing"
    elif node.pill_overdue:
        why = "it was told so by a poison pill, and does not answer, or nobody could leave it one"
    else:
        return ""
    return (
        f"its guests are wanted elsewhere, and it keeps them: {why}. Bring its network back, or see that it is off and "
        f"stays off, then: leeward node attest-fenced {node.node}"
    )


def _why_silence_is_no_proof(node: NodeSnapshot, missing_s: float, *, timing: Timing) -> str:
    if not node.guard_armed:
        return "its guard was not armed, so its silence proves nothing"
    if node.silence is None and missing_s >= slot_needs_s(node, timing):
        return "no other node can tell of its storage heartbeat"
    return ""
