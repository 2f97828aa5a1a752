"""Projects: limits that nothing gets past, however many try at once."""

import asyncio
from pathlib import Path
from typing import Any

from tests.contract.public_api.calls import launch, launched, refused
from tests.support.public import IMAGE, Face, PublicLab, add_flavor, image_spec

from leeward.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from leeward.rpc.client_errors import rpc_errors
from leeward.v1 import instance_service_pb2 as instance_service
from leeward.v1 import project_pb2
from leeward.v1 import project_service_pb2 as pb

PROJECT = "projects/p"


def limits(**quota: int) -> pb.CreateProjectRequest:
    return pb.CreateProjectRequest(
        project_id="p",
        project=project_pb2.Project(quota=project_pb2.ProjectResources(**quota)),
    )


async def set_limits(face: Face, **quota: int) -> project_pb2.Project:
    changed = project_pb2.Project(name=PROJECT, quota=project_pb2.ProjectResources(**quota))
    project: project_pb2.Project = await face.projects.UpdateProject(pb.UpdateProjectRequest(project=changed))
    return project


async def usage(face: Face) -> dict[str, int]:
    project = await face.projects.GetProject(pb.GetProjectRequest(name=PROJECT))
    return {field.name: value for field, value in project.usage.ListFields()}


async def over(call: Any) -> dict[str, str]:
    """The limits that a call is refused for."""
    error = await refused(ResourceExhausted, call)
    assert error.specific_reason == "QUOTA_EXCEEDED"
    assert {violation.subject for violation in error.violations} == {PROJECT}
    return {violation.type: violation.description for violation in error.violations}


async def test_a_project_has_limits_and_tells_what_it_uses(stocked: Face) -> None:
    projects = stocked.projects
    await launched(stocked, data_disks_gib=[2, 3])
    made = await projects.CreateProject(limits(instances=2, vcpus=100))
    assert (made.name, made.quota.instances, made.quota.HasField("memory_mib")) == (PROJECT, 2, False)
    assert await usage(stocked) == {
        "instances": 1,
        "vcpus": 1,
        "memory_mib": 512,
        "disk_gib": 6,
        "images": 1,
        "image_bytes": len(IMAGE),
    }
    await refused(AlreadyExists, projects.CreateProject(limits()))
    wrong = limits(vcpus=-1)
    assert [each.field for each in (await refused(InvalidArgument, projects.CreateProject(wrong))).fields] == [
        "project.quota.vcpus"
    ]
    in_use = await refused(FailedPrecondition, projects.DeleteProject(pb.DeleteProjectRequest(name=PROJECT)))
    assert in_use.specific_reason == "PROJECT_IN_USE"
    assert [each.name for each in (await projects.ListProjects(pb.ListProjectsRequest())).projects] == [PROJECT]
    await refused(NotFound, projects.GetProject(pb.GetProjectRequest(name="projects/other")))


async def test_every_measure_has_its_limit(stocked: Face) -> None:
    await add_flavor(stocked, "large", vcpus=4, memory_mib=1024)
    await stocked.projects.CreateProject(limits(instances=1, vcpus=3, memory_mib=600, disk_gib=2, images=1))
    create = stocked.instances.CreateInstance
    assert await over(create(launch(flavor="flavors/large", data_disks_gib=[2], validate_only=True))) == {
        "vcpus": "0 of 3 are in use, 4 more are asked for",
        "memory_mib": "0 of 600 are in use, 1024 more are asked for",
        "disk_gib": "0 of 2 are in use, 3 more are asked for",
    }
    await launched(stocked)
    assert set(await over(create(launch("other")))) == {"instances", "memory_mib"}
    assert set(await over(stocked.upload(image_spec("other")))) == {"images"}
    resize = instance_service.ResizeInstanceRequest(name="projects/p/instances/vm", flavor="flavors/large")
    assert set(await over(stocked.instances.ResizeInstance(resize))) == {"vcpus", "memory_mib"}

    await set_limits(stocked, instances=1, image_bytes=len(IMAGE))
    assert set(await over(stocked.upload(image_spec("other")))) == {"image_bytes"}
    assert not (await stocked.ended(await stocked.instances.ResizeInstance(resize))).HasField("error")
    # What is deleted is free again at once.
    delete = instance_service.DeleteInstanceRequest(name="projects/p/instances/vm")
    await stocked.ended(await stocked.instances.DeleteInstance(delete))
    await launched(stocked, "other")
    # Other projects are not concerned.
    await launched(stocked, "free", parent="projects/q")


async def test_a_limit_holds_when_many_are_launched_at_once_by_several_replicas(tmp_path: Path) -> None:
    async with PublicLab(files=tmp_path, nodes=3) as lab:
        faces = [await lab.add_controller() for _ in range(3)]
        await add_flavor(faces[0])
        await faces[0].upload()
        await faces[0].projects.CreateProject(limits(vcpus=7))

        async def attempt(number: int) -> bool:
            face = faces[number % 3]
            try:
                with rpc_errors("the controller"):
                    await face.ended(await face.instances.CreateInstance(launch(f"vm-{number}")))
            except ResourceExhausted:
                return False
            return True

        outcomes = await asyncio.gather(*(attempt(number) for number in range(24)))
        assert sum(outcomes) == 7
        used = await usage(faces[1])
        assert (used["instances"], used["vcpus"]) == (7, 7)
