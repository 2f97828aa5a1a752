"""A cluster of simulated hosts, and a controller's public face."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.public import Face, PublicLab, add_flavor

from leeward_controller.core import Policy


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[PublicLab]:
    async with PublicLab(files=tmp_path) as started:
        yield started


@pytest.fixture
async def face(lab: PublicLab) -> Face:
    return await lab.add_controller()


@pytest.fixture
async def stocked(face: Face) -> Face:
    """With an image and a flavor to make instances of."""
    await add_flavor(face)
    await face.upload()
    return face


@pytest.fixture
async def retaining(tmp_path: Path) -> AsyncIterator[Face]:
    """As `stocked`, of a cluster that keeps what is deleted for an hour."""
    async with PublicLab(files=tmp_path, policy=Policy(deleted_retention_s=3600.0)) as lab:
        face = await lab.add_controller()
        await add_flavor(face)
        await face.upload()
        yield face
