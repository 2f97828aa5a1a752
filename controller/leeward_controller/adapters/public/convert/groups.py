"""Groups."""

from leeward.v1 import group_pb2 as pb
from leeward.v1 import group_service_pb2 as service_pb
from leeward_controller.adapters.public.convert.values import masked, timestamp
from leeward_controller.domain.group import Group, GroupPolicy
from leeward_controller.records import Stored
from leeward_controller.services.groups import NewGroup

_CHANGEABLE = ("labels",)
_POLICIES = {pb.Group.Policy.Value(f"POLICY_{policy.name}"): policy for policy in GroupPolicy}


def group_to_wire(stored: Stored[Group]) -> pb.Group:
    """A group as clients see it."""
    group = stored.value
    return pb.Group(
        name=group.name,
        uid=group.uid,
        policy=pb.Group.Policy.Value(f"POLICY_{group.policy.name}"),
        instances=[member.instance for member in group.members],
        labels=group.labels,
        create_time=timestamp(group.create_time),
        etag=stored.etag,
    )


def new_group(request: service_pb.CreateGroupRequest) -> NewGroup:
    """A group to make."""
    return NewGroup(
        parent=request.parent,
        group_id=request.group_id,
        policy=_POLICIES.get(request.group.policy),
        labels=dict(request.group.labels),
        request_id=request.request_id,
        validate_only=request.validate_only,
    )


def labels_of(request: service_pb.UpdateGroupRequest) -> dict[str, str] | None:
    """The labels to set, None when they stay. Raises InvalidArgument."""
    given = _CHANGEABLE if request.group.labels else ()
    paths = masked(request.update_mask, _CHANGEABLE, given)
    return dict(request.group.labels) if "labels" in paths else None
