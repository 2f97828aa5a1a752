"""What operators may do, and who is an operator."""

import asyncio

from tests.contract.public_api.calls import VM, launched, refused
from tests.support.public import ADMIN, WAIT_S, Face, PublicLab

from leeward.errors import (
    FailedPrecondition,
    NotFound,
    PermissionDenied,
)
from leeward.identity import Principal, Role
from leeward.v1 import flavor_service_pb2 as flavor_pb
from leeward.v1 import instance_service_pb2 as pb
from leeward.v1 import node_service_pb2 as node_pb
from leeward.v1 import operation_service_pb2 as operation_pb
from leeward.v1 import watch_pb2


async def test_an_operator_vouches_for_a_dead_node_and_never_for_a_living_one(lab: PublicLab, stocked: Face) -> None:
    made = await launched(stocked)
    node = await stocked.nodes.GetNode(node_pb.GetNodeRequest(name=made.node))
    assert node.heartbeat_alive
    assert node.instance_count == 1
    evacuate = pb.EvacuateInstanceRequest(name=VM)
    attest = node_pb.AttestNodeFencedRequest(name=made.node, boot_id=node.boot_id, evidence="I pulled the plug")
    error = await refused(FailedPrecondition, stocked.nodes.AttestNodeFenced(attest))
    assert error.specific_reason == "NODE_ALIVE"
    error = await refused(FailedPrecondition, stocked.instances.EvacuateInstance(evacuate))
    assert error.specific_reason == "NOT_FENCED"
    error = await refused(FailedPrecondition, stocked.nodes.EvacuateNode(node_pb.EvacuateNodeRequest(name=made.node)))
    assert error.specific_reason == "NOT_FENCED"

    host = made.node.removeprefix("nodes/")
    await lab.cluster.nodes[host].power_off()
    core = lab.cluster.controllers["controller-0"].core
    assert core is not None
    assert await core.view.wait_for(lambda: host not in core.view.leases, timeout_s=WAIT_S)
    other = node_pb.AttestNodeFencedRequest(name=made.node, boot_id="another", evidence="I pulled the plug")
    error = await refused(FailedPrecondition, stocked.nodes.AttestNodeFenced(other))
    assert error.metadata["boot_id"] == node.boot_id
    proof = await stocked.nodes.AttestNodeFenced(attest)
    assert (proof.boot_id, proof.evidence, proof.observer) == (node.boot_id, "I pulled the plug", str(ADMIN))
    assert (await stocked.nodes.AttestNodeFenced(attest)) == proof
    async with asyncio.timeout(WAIT_S):
        watch = stocked.instances.WatchInstances(pb.WatchInstancesRequest(parent="projects/p"))
        async for event in watch:
            if event.instance.node not in ("", made.node):
                break
        watch.cancel()


async def test_nodes_are_watched_cordoned_and_released(stocked: Face) -> None:
    async with asyncio.timeout(WAIT_S):
        watch = stocked.nodes.WatchNodes(node_pb.WatchNodesRequest())
        names = [(await watch.read()).node.name for _ in range(2)]
        assert names == ["nodes/host-a", "nodes/host-b"]
        await stocked.nodes.CordonNode(node_pb.CordonNodeRequest(name="nodes/host-b", reason="fans"))
        event = await watch.read()
        while event.type == watch_pb2.WATCH_EVENT_TYPE_BOOKMARK or not event.node.cordoned:
            event = await watch.read()
        watch.cancel()
    assert (event.node.name, event.node.cordon_reason) == ("nodes/host-b", "fans")
    listed = await stocked.nodes.ListNodes(node_pb.ListNodesRequest(filter="condition = CORDONED"))
    assert [node.name for node in listed.nodes] == ["nodes/host-b"]
    released = await stocked.nodes.UncordonNode(node_pb.UncordonNodeRequest(name="nodes/host-b"))
    assert not released.cordoned
    assert released.cordon_reason == ""


async def test_roles(lab: PublicLab, face: Face) -> None:
    core = lab.cluster.controllers["controller-0"].core
    assert core is not None
    faces = {}
    for role in (Role.CLIENT, Role.CONTROLLER, Role.AGENT):
        faces[role] = lab.serve(core, address="127.0.0.1:0", principal=Principal(role, "someone"))
        await faces[role].server.start()
    cordon = node_pb.CordonNodeRequest(name="nodes/host-a")
    listing = pb.ListInstancesRequest(parent="projects/p")
    nowhere = operation_pb.WatchOperationRequest(name=f"operations/{'a' * 26}")
    await faces[Role.CLIENT].instances.ListInstances(listing)
    await faces[Role.CLIENT].nodes.ListNodes(node_pb.ListNodesRequest())
    await refused(PermissionDenied, faces[Role.CLIENT].nodes.CordonNode(cordon))
    await refused(PermissionDenied, faces[Role.CLIENT].flavors.CreateFlavor(flavor_pb.CreateFlavorRequest()))
    await refused(NotFound, faces[Role.CONTROLLER].watch.WatchOperation(nowhere).read())
    await refused(PermissionDenied, faces[Role.CONTROLLER].instances.ListInstances(listing))
    await refused(PermissionDenied, faces[Role.AGENT].watch.WatchOperation(nowhere).read())
    await refused(PermissionDenied, faces[Role.AGENT].instances.ListInstances(listing))
