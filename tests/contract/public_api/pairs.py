"""Instances in every state, written straight into the store, and a request for every action of the table.

Another one is said to lead, so that nobody mends what these records claim and no host knows of.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from google.protobuf.message import Message
from tests.contract.public_api.calls import DEBIAN
from tests.support.public import SHA256, Face, PublicLab, add_flavor

from leeward import keys
from leeward.agent.convert import decode_node_report, encode_node_report
from leeward.agent.types import DiskFormat
from leeward.v1 import instance_pb2
from leeward.v1 import instance_service_pb2 as pb
from leeward_controller.adapters.convert_state import StateCodec
from leeward_controller.domain.cluster import Controller
from leeward_controller.domain.instance import (
    Deletion,
    Instance,
    InstanceState,
    Rescue,
    Resize,
    Resources,
    Shelf,
)
from leeward_controller.domain.node import FenceProof, Node, NodeCondition, ProofKind
from leeward_controller.domain.operation import OperationType
from leeward_controller.domain.transitions import TABLE, Action, Immediate
from leeward_controller.records import Commit, Records
from leeward_lab.simulated.cluster import POOL_ID

_O = OperationType
_S = InstanceState
_SIZE = Resources(1, 512, 1)

ALIVE, LOST = "host-a", "host-z"
WITHOUT_NODE = frozenset({_S.SHELVED_OFFLOADED, _S.DELETED})

# Nobody can ask for these of an instance that exists.
NOT_ASKED_FOR = frozenset({_O.CREATE, _O.OFFLOAD, _O.RECOVER})

REQUESTS: dict[Action, Callable[[str], Message]] = {
    _O.START: lambda name: pb.StartInstanceRequest(name=name),
    _O.STOP: lambda name: pb.StopInstanceRequest(name=name),
    _O.REBOOT: lambda name: pb.RebootInstanceRequest(name=name, mode=pb.REBOOT_MODE_HARD),
    _O.DELETE: lambda name: pb.DeleteInstanceRequest(name=name),
    _O.UNDELETE: lambda name: pb.UndeleteInstanceRequest(name=name),
    _O.PAUSE: lambda name: pb.PauseInstanceRequest(name=name),
    _O.UNPAUSE: lambda name: pb.UnpauseInstanceRequest(name=name),
    _O.SUSPEND: lambda name: pb.SuspendInstanceRequest(name=name),
    _O.RESUME: lambda name: pb.ResumeInstanceRequest(name=name),
    _O.RESIZE: lambda name: pb.ResizeInstanceRequest(name=name, flavor="flavors/larger"),
    _O.CONFIRM_RESIZE: lambda name: pb.ConfirmResizeRequest(name=name),
    _O.REVERT_RESIZE: lambda name: pb.RevertResizeRequest(name=name),
    _O.SNAPSHOT: lambda name: pb.SnapshotInstanceRequest(name=name, image_id=f"of-{name.rpartition('/')[2]}"),
    _O.MIGRATE: lambda name: pb.MigrateInstanceRequest(name=name),
    _O.LIVE_MIGRATE: lambda name: pb.LiveMigrateInstanceRequest(name=name),
    _O.SHELVE: lambda name: pb.ShelveInstanceRequest(name=name),
    _O.UNSHELVE: lambda name: pb.UnshelveInstanceRequest(name=name),
    _O.RESCUE: lambda name: pb.RescueInstanceRequest(name=name),
    _O.UNRESCUE: lambda name: pb.UnrescueInstanceRequest(name=name),
    _O.REBUILD: lambda name: pb.RebuildInstanceRequest(name=name),
    _O.EVACUATE: lambda name: pb.EvacuateInstanceRequest(name=name),
    _O.CRASH_DUMP: lambda name: pb.CrashDumpInstanceRequest(name=name),
    Immediate.UPDATE: lambda name: pb.UpdateInstanceRequest(
        instance=instance_pb2.Instance(name=name, labels={"changed": "yes"})
    ),
    Immediate.LOCK: lambda name: pb.LockInstanceRequest(name=name, reason="tested"),
    Immediate.UNLOCK: lambda name: pb.UnlockInstanceRequest(name=name),
    Immediate.GET_CONSOLE_LOG: lambda name: pb.GetConsoleLogRequest(name=name),
    Immediate.ATTACH_CONSOLE: lambda name: pb.AttachConsoleRequest(name=name),
    Immediate.LIST_EVENTS: lambda name: pb.ListInstanceEventsRequest(parent=name),
}

PAIRS = [(action, state) for action in TABLE if action not in NOT_ASKED_FOR for state in InstanceState]


async def ask(face: Face, action: Action, name: str) -> Any:
    """Make the request for `action` on an instance; returns the first answer."""
    request = REQUESTS[action](name)
    method = type(request).DESCRIPTOR.name.removesuffix("Request")
    call = getattr(face.instances, method)
    if action is not Immediate.ATTACH_CONSOLE:
        return await call(request)

    async def messages() -> Any:
        yield request

    async for answer in call(messages()):
        return answer
    return None


@dataclass(frozen=True)
class Stage:
    """A cluster of two hosts that are alive and one that is lost and fenced, with an image and two flavors."""

    face: Face
    records: Records

    async def put(self, instance: Instance) -> str:
        """Write an instance; returns its name."""
        await self.records.commit(Commit().create(keys.instance(instance.name), instance))
        return instance.name


async def set_stage(lab: PublicLab) -> Stage:
    """Write the nodes, and start a controller that leads nothing."""
    records = Records(store=lab.cluster.store, codec=StateCodec(), ids=lab.ids, clock=lab.clock)
    now = lab.clock.now()
    commit = Commit().create(keys.LEADER, Controller("another", "nowhere", "0", now))
    for name, node in lab.cluster.nodes.items():
        assert node.agent is not None
        # As it arrives over the wire.
        report = decode_node_report(encode_node_report(await node.agent.describe_node()))
        commit.create(keys.node(name), Node(name, lab.ids.new(), NodeCondition.READY, "", report, now, now))
    gone = replace(report, node=LOST, boot_id="boot-z")
    commit.create(keys.node(LOST), Node(LOST, lab.ids.new(), NodeCondition.FENCED, "", gone, now, now))
    proof = FenceProof(LOST, "boot-z", ProofKind.ATTESTATION, "the test says so", now, "tester")
    commit.create(keys.fence(LOST, "boot-z"), proof)
    await records.commit(commit)
    face = await lab.add_controller()
    await add_flavor(face)
    await add_flavor(face, "larger", vcpus=2)
    await face.upload()
    return Stage(face, records)


def instance_in(lab: PublicLab, state: InstanceState, instance_id: str, *, node: str = ALIVE) -> Instance:
    """A record in this state, with all that the state explains it by."""
    now = lab.clock.now()
    image = (DEBIAN, SHA256, DiskFormat.RAW)
    parts: dict[InstanceState, dict[str, Any]] = {
        _S.RESIZED: {"resize": Resize("small", _SIZE, node, POOL_ID, _S.ACTIVE)},
        _S.RESCUED: {"rescue": Rescue(*image, _S.ACTIVE)},
        _S.SHELVED: {"shelf": Shelf(*image, now + timedelta(hours=1))},
        _S.SHELVED_OFFLOADED: {"shelf": Shelf(*image), "pool_id": ""},
        _S.SOFT_DELETED: {"deletion": Deletion(_S.STOPPED, now + timedelta(hours=1))},
        _S.ERROR: {"fault": "the test says so"},
    }
    common: dict[str, Any] = {"pool_id": POOL_ID, "node": "" if state in WITHOUT_NODE else node, "run_epoch": 1}
    return Instance(
        name=f"projects/p/instances/{instance_id}",
        uid=lab.ids.new(),
        state=state,
        flavor="small",
        resources=_SIZE,
        image=DEBIAN,
        image_digest=SHA256,
        image_format=DiskFormat.RAW,
        nics=(),
        create_time=now,
        update_time=now,
        created_by="tester",
        restart_on_failure=False,
        **(common | parts.get(state, {})),
    )
