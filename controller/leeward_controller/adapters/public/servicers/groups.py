"""`leeward.v1.GroupService`."""

# ruff: noqa: N802 - the methods have the names that the contract gives them.

from google.protobuf.empty_pb2 import Empty

from leeward.rpc.handlers import Context
from leeward.v1 import group_pb2
from leeward.v1 import group_service_pb2 as pb
from leeward_controller.adapters.public.convert import groups as convert
from leeward_controller.services.groups import GroupService
from leeward_controller.services.instances import Target
from leeward_controller.services.paging import PageRequest


class GroupServicer:
    """Groups over gRPC."""

    def __init__(self, groups: GroupService) -> None:
        self._groups = groups

    async def CreateGroup(self, request: pb.CreateGroupRequest, context: Context) -> group_pb2.Group:
        return convert.group_to_wire(await self._groups.create(convert.new_group(request)))

    async def GetGroup(self, request: pb.GetGroupRequest, context: Context) -> group_pb2.Group:
        return convert.group_to_wire(await self._groups.get(request.name))

    async def ListGroups(self, request: pb.ListGroupsRequest, context: Context) -> pb.ListGroupsResponse:
        listing = await self._groups.list(request.parent, PageRequest(request.page_size, request.page_token))
        return pb.ListGroupsResponse(
            groups=[convert.group_to_wire(item) for item in listing.items],
            next_page_token=listing.next_page_token,
            revision=listing.revision,
        )

    async def UpdateGroup(self, request: pb.UpdateGroupRequest, context: Context) -> group_pb2.Group:
        target = Target(request.group.name, request.group.etag, request.validate_only)
        labels = convert.labels_of(request)
        return convert.group_to_wire(await self._groups.update(target, labels=labels, request_id=request.request_id))

    async def DeleteGroup(self, request: pb.DeleteGroupRequest, context: Context) -> Empty:
        await self._groups.delete(Target(request.name, request.etag, request.validate_only))
        return Empty()
