"""A locked instance refuses every change by others than admins, and says why."""

from tests.contract.public_api.calls import VM, launched, refused
from tests.contract.public_api.pairs import REQUESTS, ask, instance_in, set_stage
from tests.support.public import ADMIN, Face, PublicLab

from leeward.errors import InvalidArgument, LeewardError, Locked, NotFound, PermissionDenied
from leeward.identity import Principal, Role
from leeward.rpc.client_errors import rpc_errors
from leeward.v1 import instance_service_pb2 as pb
from leeward_controller.domain.instance import InstanceState
from leeward_controller.domain.transitions import TABLE

ALICE, BOB = Principal(Role.CLIENT, "alice"), Principal(Role.CLIENT, "bob")


async def test_a_lock_keeps_everybody_out_but_admins(lab: PublicLab, stocked: Face) -> None:
    alice, bob = await lab.add_controller(principal=ALICE), await lab.add_controller(principal=BOB)
    await launched(stocked)
    lock = pb.LockInstanceRequest(name=VM, reason="the auditors are in")
    tried = await alice.instances.LockInstance(pb.LockInstanceRequest(name=VM, validate_only=True))
    assert not tried.HasField("lock")
    locked = await alice.instances.LockInstance(lock)
    assert (locked.lock.reason, locked.lock.locker) == ("the auditors are in", str(ALICE))
    assert locked.lock.HasField("lock_time")
    assert await alice.instances.LockInstance(lock) == locked, "asked twice"

    # Who locked it is kept out too: that is what a lock against one's own mistakes is for.
    for face in (alice, bob):
        error = await refused(Locked, face.instances.DeleteInstance(pb.DeleteInstanceRequest(name=VM)))
        assert error.specific_reason == "INSTANCE_LOCKED"
        assert error.metadata == {"locker": str(ALICE), "lock_reason": "the auditors are in"}
        assert [(each.type, each.description) for each in error.violations] == [("LOCK", "the auditors are in")]
    denied = await refused(PermissionDenied, bob.instances.UnlockInstance(pb.UnlockInstanceRequest(name=VM)))
    assert denied.metadata["locker"] == str(ALICE)
    await refused(Locked, bob.instances.LockInstance(pb.LockInstanceRequest(name=VM, reason="mine")))

    stop = await stocked.ended(await stocked.instances.StopInstance(pb.StopInstanceRequest(name=VM)))
    assert not stop.HasField("error"), "an admin is not kept out"
    unlocked = await alice.instances.UnlockInstance(pb.UnlockInstanceRequest(name=VM))
    assert not unlocked.HasField("lock")
    assert await bob.instances.UnlockInstance(pb.UnlockInstanceRequest(name=VM)) == unlocked
    again = await bob.instances.LockInstance(pb.LockInstanceRequest(name=VM))
    taken = await stocked.instances.LockInstance(pb.LockInstanceRequest(name=VM, reason="evidence"))
    assert (again.lock.locker, taken.lock.locker) == (str(BOB), str(ADMIN))
    await refused(PermissionDenied, bob.instances.UnlockInstance(pb.UnlockInstanceRequest(name=VM)))
    assert not (await stocked.instances.UnlockInstance(pb.UnlockInstanceRequest(name=VM))).HasField("lock")


async def test_what_is_wrong_with_a_lock_is_told(stocked: Face) -> None:
    error = await refused(
        InvalidArgument, stocked.instances.LockInstance(pb.LockInstanceRequest(name="vm", reason="x" * 1025))
    )
    assert {each.field for each in error.fields} == {"name", "reason"}
    await refused(NotFound, stocked.instances.LockInstance(pb.LockInstanceRequest(name=VM)))
    await refused(NotFound, stocked.instances.UnlockInstance(pb.UnlockInstanceRequest(name=VM)))


async def test_every_action_holds_to_the_lock_as_the_table_says(lab: PublicLab) -> None:
    stage = await set_stage(lab)
    alice = await lab.add_controller(principal=ALICE)
    for number, (action, rule) in enumerate((action, TABLE[action]) for action in REQUESTS):
        state = InstanceState.ACTIVE if InstanceState.ACTIVE in rule.allowed_from else min(rule.allowed_from)
        name = await stage.put(instance_in(lab, state, f"vm-{number}"))
        await stage.face.instances.LockInstance(pb.LockInstanceRequest(name=name, reason="hands off"))
        try:
            with rpc_errors("the controller"):
                await ask(alice, action, name)
        except LeewardError as error:
            held = isinstance(error, Locked)
        else:
            held = False
        assert held is rule.lock_checked, action
