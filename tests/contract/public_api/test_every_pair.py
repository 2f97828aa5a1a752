"""Every action in every state, against the running API: what the table allows is begun, all else is refused by it."""

from tests.contract.public_api.calls import refused
from tests.contract.public_api.pairs import (
    LOST,
    NOT_ASKED_FOR,
    PAIRS,
    REQUESTS,
    Stage,
    ask,
    instance_in,
    set_stage,
)
from tests.support.public import PublicLab

from leeward.errors import LeewardError, WrongState
from leeward.rpc.client_errors import rpc_errors
from leeward.v1 import instance_service_pb2 as pb
from leeward_controller.domain.instance import InstanceState
from leeward_controller.domain.operation import OperationType
from leeward_controller.domain.transitions import TABLE, Action, Immediate

# What the host says of a guest that only the record knows, once the call was let through to it.
_FROM_THE_HOST = {"NOT_FOUND", "FAILED_PRECONDITION"}


async def outcome(stage: Stage, action: Action, name: str) -> LeewardError | None:
    """The error of a call, None when it was taken."""
    try:
        with rpc_errors("the controller"):
            await ask(stage.face, action, name)
    except LeewardError as error:
        return error
    return None


def test_every_action_can_be_asked_for() -> None:
    assert set(REQUESTS) == set(TABLE) - NOT_ASKED_FOR
    assert len(PAIRS) == len(REQUESTS) * len(InstanceState)


async def test_every_pair(lab: PublicLab) -> None:
    stage = await set_stage(lab)
    wrong: list[str] = []
    begun = refused = 0
    for number, (action, state) in enumerate(PAIRS):
        # An evacuation needs a node that is fenced, everything else one that is alive.
        where = {"node": LOST} if action is OperationType.EVACUATE else {}
        instance = instance_in(lab, state, f"vm-{number}", **where)
        name = await stage.put(instance)
        error = await outcome(stage, action, name)
        pair = f"{action} of one that is {state}"
        rule = TABLE[action]
        if state not in rule.allowed_from:
            refused += 1
            told = {"current_state": state.value, "allowed_states": ", ".join(sorted(rule.allowed_from))}
            if not isinstance(error, WrongState) or error.metadata != told:
                wrong.append(f"{pair} must be refused with {told}: {error!r} {error and error.metadata}")
            elif [each.type for each in error.violations] != ["STATE"]:
                wrong.append(f"{pair} is refused without telling the state: {error.violations}")
        elif rule.needs_node and not instance.node:
            refused += 1
            if error is None or error.specific_reason != "NO_NODE":
                wrong.append(f"{pair} and on no node must be refused for that: {error!r}")
        else:
            begun += 1
            from_host = action in (Immediate.GET_CONSOLE_LOG, Immediate.ATTACH_CONSOLE)
            if error is not None and not (from_host and error.specific_reason in _FROM_THE_HOST):
                wrong.append(f"{pair} must be allowed: {error!r}")
    assert not wrong, "\n".join(wrong)
    assert begun > 100
    assert refused > 150


async def test_a_soft_reboot_needs_a_guest_that_listens(lab: PublicLab) -> None:
    stage = await set_stage(lab)
    for state in TABLE[OperationType.REBOOT].allowed_from - {InstanceState.ACTIVE}:
        name = await stage.put(instance_in(lab, state, f"vm-{state.lower().replace('_', '-')}"))
        soft = pb.RebootInstanceRequest(name=name)
        error = await refused(WrongState, stage.face.instances.RebootInstance(soft))
        assert error.metadata == {"current_state": state.value, "allowed_states": "ACTIVE"}
