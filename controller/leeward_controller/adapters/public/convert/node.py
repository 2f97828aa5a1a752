"""Nodes and the proofs about them."""

from leeward.v1 import node_pb2 as pb
from leeward.v1 import node_service_pb2 as service_pb
from leeward_controller.adapters.public.convert.values import timestamp, watch_event_type
from leeward_controller.domain.node import FenceProof, Node
from leeward_controller.records import NODES
from leeward_controller.services.shown_nodes import ShownNode
from leeward_controller.services.watches import WatchEvent


def node_to_wire(shown: ShownNode) -> pb.Node:
    """A node as clients see it. What it says of itself is from its heartbeat, or the last one that was kept."""
    node, report = shown.stored.value, shown.lease or shown.stored.value.report
    message = pb.Node(
        name=node.name,
        uid=node.uid,
        condition=pb.Node.Condition.Value(f"CONDITION_{node.shown_condition.name}"),
        condition_reason=node.reason,
        condition_time=timestamp(node.condition_time),
        cordoned=node.cordoned,
        cordon_reason=node.cordon_reason,
        heartbeat_alive=shown.lease is not None,
        boot_id=node.report.boot_id,
        capacity=pb.NodeResources(vcpus=report.vcpus, memory_mib=report.memory_mib),
        allocated=pb.NodeResources(vcpus=shown.allocation.vcpus, memory_mib=shown.allocation.memory_mib),
        instance_count=len(shown.allocation.reservations),
        pools=[
            pb.NodePool(
                pool=pool.pool_id,
                capacity_gib=pool.capacity_gib,
                available_gib=pool.available_gib,
                healthy=pool.healthy,
            )
            for pool in report.pools
        ],
        hypervisor=report.hypervisor,
        hypervisor_version=report.hypervisor_version,
        agent_version=report.agent_version,
        agent_address=report.address,
        guard_armed=report.guard_armed,
        labels=report.labels | node.labels,
        create_time=timestamp(node.create_time),
        etag=shown.stored.etag,
        current_operation=node.current_operation,
        drained_instances=[each.instance for each in node.moved_away],
    )
    if shown.proof is not None:
        message.fence_proof.CopyFrom(proof_to_wire(shown.proof))
    return message


def proof_to_wire(proof: FenceProof) -> pb.FenceProof:
    """The evidence that one boot of a node is over."""
    return pb.FenceProof(
        node=f"nodes/{proof.node}",
        boot_id=proof.boot_id,
        kind=pb.FenceProofKind.Value(f"FENCE_PROOF_KIND_{proof.kind.name}"),
        evidence=proof.evidence,
        proof_time=timestamp(proof.time),
        observer=proof.observed_by,
    )


def watch_response(event: WatchEvent[Node], shown: ShownNode | None) -> service_pb.WatchNodesResponse:
    """One message of a watch; `shown` is its node, where it has one."""
    message = service_pb.WatchNodesResponse(type=watch_event_type(event.type), revision=event.revision)
    if shown is not None:
        message.node.CopyFrom(node_to_wire(shown))
    elif event.key:
        message.node.name = f"nodes/{event.key.removeprefix(NODES.prefix)}"
    return message
