"""`leeward.v1.ProjectService`."""

# ruff: noqa: N802 - the methods have the names that the contract gives them.

from google.protobuf.empty_pb2 import Empty

from leeward.rpc.handlers import Context
from leeward.v1 import project_pb2
from leeward.v1 import project_service_pb2 as pb
from leeward_controller.adapters.public.convert import projects as convert
from leeward_controller.services.instances import Target
from leeward_controller.services.paging import PageRequest
from leeward_controller.services.projects import ProjectService


class ProjectServicer:
    """Projects over gRPC."""

    def __init__(self, projects: ProjectService) -> None:
        self._projects = projects

    async def CreateProject(self, request: pb.CreateProjectRequest, context: Context) -> project_pb2.Project:
        return convert.project_to_wire(await self._projects.create(convert.new_project(request)))

    async def GetProject(self, request: pb.GetProjectRequest, context: Context) -> project_pb2.Project:
        return convert.project_to_wire(await self._projects.get(request.name))

    async def ListProjects(self, request: pb.ListProjectsRequest, context: Context) -> pb.ListProjectsResponse:
        shown, listing = await self._projects.list(PageRequest(request.page_size, request.page_token))
        return pb.ListProjectsResponse(
            projects=[convert.project_to_wire(each) for each in shown],
            next_page_token=listing.next_page_token,
            revision=listing.revision,
        )

    async def UpdateProject(self, request: pb.UpdateProjectRequest, context: Context) -> project_pb2.Project:
        wire = request.project
        shown = await self._projects.update(
            Target(wire.name, wire.etag, request.validate_only),
            convert.spec_of(wire),
            convert.fields_of(request),
            request_id=request.request_id,
        )
        return convert.project_to_wire(shown)

    async def DeleteProject(self, request: pb.DeleteProjectRequest, context: Context) -> Empty:
        await self._projects.delete(Target(request.name, request.etag, request.validate_only))
        return Empty()
