"""Groups: their members are placed together or apart, also when many are placed at the same time."""

import asyncio
from collections import Counter
from pathlib import Path

from tests.contract.public_api.calls import launch, launched, refused
from tests.support.public import Face, PublicLab, add_flavor

from leeward.errors import AlreadyExists, Conflict, FailedPrecondition, InvalidArgument, NodeUnfit, NoNodeFits, NotFound
from leeward.v1 import group_pb2, instance_pb2
from leeward.v1 import group_service_pb2 as pb
from leeward.v1 import instance_service_pb2 as instance_service

APART = group_pb2.Group.POLICY_ANTI_AFFINITY
TOGETHER = group_pb2.Group.POLICY_AFFINITY
SOFTLY_APART = group_pb2.Group.POLICY_SOFT_ANTI_AFFINITY
GROUP = "projects/p/groups/g"


def wanted(policy: "group_pb2.Group.Policy.ValueType" = APART, **changes: str) -> pb.CreateGroupRequest:
    fields = {"parent": "projects/p", "group_id": "g"} | changes
    return pb.CreateGroupRequest(group=group_pb2.Group(policy=policy, labels={"tier": "db"}), **fields)  # type: ignore[arg-type]


async def nodes_of(face: Face) -> dict[str, str]:
    request = instance_service.ListInstancesRequest(parent="projects/p")
    return {each.name.rpartition("/")[2]: each.node for each in (await face.instances.ListInstances(request)).instances}


async def gone(face: Face, name: str) -> None:
    deleted = await face.instances.DeleteInstance(instance_service.DeleteInstanceRequest(name=name))
    assert not (await face.ended(deleted)).HasField("error")


async def test_a_group_is_made_changed_and_removed_when_nobody_is_in_it(stocked: Face) -> None:
    groups = stocked.groups
    made = await groups.CreateGroup(wanted(request_id="r-1"))
    assert (made.name, made.policy, dict(made.labels)) == (GROUP, APART, {"tier": "db"})
    assert (await groups.CreateGroup(wanted(request_id="r-1"))).uid == made.uid
    await refused(AlreadyExists, groups.CreateGroup(wanted()))
    wrong = await refused(InvalidArgument, groups.CreateGroup(pb.CreateGroupRequest(parent="x", group_id="G")))
    assert {each.field for each in wrong.fields} == {"parent", "group_id", "group.policy"}

    changed = await groups.UpdateGroup(
        pb.UpdateGroupRequest(group=group_pb2.Group(name=GROUP, labels={"tier": "web"}, etag=made.etag))
    )
    assert dict(changed.labels) == {"tier": "web"}
    stale = pb.UpdateGroupRequest(group=group_pb2.Group(name=GROUP, labels={"a": "b"}, etag=made.etag))
    await refused(Conflict, groups.UpdateGroup(stale))

    await refused(NotFound, stocked.instances.CreateInstance(launch(group="projects/p/groups/other")))
    await launched(stocked, group=GROUP)
    assert list((await groups.GetGroup(pb.GetGroupRequest(name=GROUP))).instances) == ["projects/p/instances/vm"]
    used = await refused(FailedPrecondition, groups.DeleteGroup(pb.DeleteGroupRequest(name=GROUP)))
    assert used.specific_reason == "GROUP_IN_USE"
    await gone(stocked, "projects/p/instances/vm")
    listed = await groups.ListGroups(pb.ListGroupsRequest(parent="projects/-"))
    assert [(each.name, list(each.instances)) for each in listed.groups] == [(GROUP, [])]
    await groups.DeleteGroup(pb.DeleteGroupRequest(name=GROUP))
    await refused(NotFound, groups.GetGroup(pb.GetGroupRequest(name=GROUP)))


async def test_hard_rules_hold_when_several_replicas_launch_at_once(tmp_path: Path) -> None:
    async with PublicLab(files=tmp_path, nodes=4) as lab:
        faces = [await lab.add_controller() for _ in range(3)]
        await add_flavor(faces[0])
        await faces[0].upload()
        await faces[0].groups.CreateGroup(wanted(APART, group_id="apart"))
        await faces[0].groups.CreateGroup(wanted(TOGETHER, group_id="together"))

        async def launch_one(number: int, group: str) -> bool:
            request = launch(f"{group}-{number}", group=f"projects/p/groups/{group}")
            face = faces[number % 3]
            return not (await face.ended(await face.instances.CreateInstance(request))).HasField("error")

        names = [f"nodes/{name}" for name in lab.cluster.nodes]
        assert all(await asyncio.gather(*(launch_one(number, "together") for number in range(5))))
        assert all(await asyncio.gather(*(launch_one(number, "apart") for number in range(4))))
        nodes = await nodes_of(faces[0])
        assert len({nodes[f"together-{number}"] for number in range(5)}) == 1
        assert sorted(nodes[f"apart-{number}"] for number in range(4)) == sorted(names)

        # There is no fifth node for one that must be alone, until another one has gone.
        late = launch("late", group="projects/p/groups/apart")
        full = await refused(NoNodeFits, faces[1].instances.CreateInstance(late))
        assert all("keeps its members apart" in each.description for each in full.violations), full.message
        await gone(faces[0], "projects/p/instances/apart-2")
        assert (await launched(faces[1], "late", group="projects/p/groups/apart")).node == nodes["apart-2"]


async def test_a_move_that_would_break_a_hard_rule_is_refused_and_a_soft_rule_gives_way(stocked: Face) -> None:
    await stocked.groups.CreateGroup(wanted(APART))
    one = await launched(stocked, "one", group=GROUP)
    two = await launched(stocked, "two", group=GROUP)
    assert one.node != two.node
    move = instance_service.LiveMigrateInstanceRequest(name=one.name, node=two.node)
    told = await refused(NodeUnfit, stocked.instances.LiveMigrateInstance(move))
    assert told.violations[0].description == f"{GROUP} keeps its members apart, and {two.name} is on it"

    await stocked.groups.CreateGroup(wanted(SOFTLY_APART, group_id="soft"))
    soft = [await launched(stocked, f"soft-{number}", group="projects/p/groups/soft") for number in range(4)]
    assert Counter(each.node for each in soft) == {one.node: 2, two.node: 2}
    assert soft[3].state == instance_pb2.Instance.STATE_ACTIVE


async def test_hard_rules_hold_when_a_node_dies(tmp_path: Path) -> None:
    async with PublicLab(files=tmp_path, nodes=4) as lab:
        faces = [await lab.add_controller() for _ in range(2)]
        await add_flavor(faces[0])
        await faces[0].upload()
        await faces[0].groups.CreateGroup(wanted(APART, group_id="apart"))
        await faces[0].groups.CreateGroup(wanted(TOGETHER, group_id="together"))
        apart = [await launched(faces[0], f"apart-{number}", group="projects/p/groups/apart") for number in range(3)]
        lost = apart[0].node
        for number in range(3):
            together = await launched(
                faces[0], f"together-{number}", group="projects/p/groups/together", node="" if number else lost
            )
            assert together.node == lost
        await lab.cluster.nodes[lost.removeprefix("nodes/")].power_off()
        survivor = lab.cluster.controllers["controller-1"].core
        assert survivor is not None
        view, dead = survivor.view, lost.removeprefix("nodes/")
        assert await view.wait_for(lambda: not view.count_on(dead), timeout_s=60)
        nodes = await nodes_of(faces[1])
        assert len({nodes[f"apart-{number}"] for number in range(3)}) == 3
        assert len({nodes[f"together-{number}"] for number in range(3)}) == 1
