"""Instances on pools that one host has alone: the image comes to them, and they are told from shared ones."""

from pathlib import Path

from tests.contract.public_api.calls import launch, launched, refused
from tests.support.public import SHA256, PublicLab, add_flavor, image_spec

from leeward.errors import NoNodeFits
from leeward.v1 import instance_pb2
from leeward_lab.simulated.cluster import POOL_ID, local_pool_id


async def test_an_image_is_fetched_into_the_pool_that_an_instance_asked_for(tmp_path: Path) -> None:
    async with PublicLab(files=tmp_path, local_pools=True) as lab:
        face = await lab.add_controller()
        await add_flavor(face)
        first, second = lab.cluster.nodes
        own, other = local_pool_id(first), local_pool_id(second)
        image = await face.upload(image_spec("debian", pool=own))
        assert list(image.pools) == [own]

        local = await launched(face, "local", storage=instance_pb2.STORAGE_LOCAL, node=f"nodes/{second}")
        assert (local.state, local.pool) == (instance_pb2.Instance.STATE_ACTIVE, other)
        assert SHA256 in lab.cluster.pools[other].images
        anywhere = await launched(face, "anywhere")
        shared = await launched(face, "shared", storage=instance_pb2.STORAGE_SHARED)
        assert (anywhere.pool, shared.pool) == (POOL_ID, POOL_ID)
        assert SHA256 in lab.cluster.pools[POOL_ID].images


async def test_without_a_pool_of_the_kind_asked_for_there_is_no_place(tmp_path: Path) -> None:
    async with PublicLab(files=tmp_path) as lab:
        face = await lab.add_controller()
        await add_flavor(face)
        await face.upload()
        wanted = launch(storage=instance_pb2.STORAGE_LOCAL)
        error = await refused(NoNodeFits, face.instances.CreateInstance(wanted))
        assert {each.description for each in error.violations} == {"it has no working local pool"}
