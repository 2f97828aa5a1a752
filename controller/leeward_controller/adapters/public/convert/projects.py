"""Projects."""

from dataclasses import fields

from leeward.v1 import project_pb2 as pb
from leeward.v1 import project_service_pb2 as service_pb
from leeward_controller.adapters.public.convert.values import masked, timestamp
from leeward_controller.domain.project import Quota, Usage
from leeward_controller.services.projects import CHANGEABLE, NewProject, ProjectSpec, ShownProject


def project_to_wire(shown: ShownProject) -> pb.Project:
    """A project as clients see it."""
    project = shown.stored.value
    message = pb.Project(
        name=project.name,
        uid=project.uid,
        labels=project.labels,
        create_time=timestamp(project.create_time),
        etag=shown.stored.etag,
    )
    message.quota.SetInParent()
    for each in fields(Quota):
        limit = getattr(project.quota, each.name)
        if limit is not None:
            setattr(message.quota, each.name, limit)
    for each in fields(Usage):
        setattr(message.usage, each.name, getattr(shown.usage, each.name))
    return message


def new_project(request: service_pb.CreateProjectRequest) -> NewProject:
    """A project to make."""
    return NewProject(
        project_id=request.project_id,
        spec=spec_of(request.project),
        request_id=request.request_id,
        validate_only=request.validate_only,
    )


def spec_of(wire: pb.Project) -> ProjectSpec:
    """What an operator says of a project."""
    limits = {field.name: limit for field, limit in wire.quota.ListFields()}
    return ProjectSpec(quota=Quota(**limits), labels=dict(wire.labels))


def fields_of(request: service_pb.UpdateProjectRequest) -> frozenset[str]:
    """Which fields to change; without a mask those that are set. Raises InvalidArgument."""
    wire = request.project
    given = [name for name, is_set in (("quota", wire.HasField("quota")), ("labels", bool(wire.labels))) if is_set]
    return masked(request.update_mask, CHANGEABLE, given)
