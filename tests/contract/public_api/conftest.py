"""A cluster of simulated hosts, and a controller's public face."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.public import Face, PublicLab, add_flavor


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
