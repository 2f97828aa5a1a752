"""Real clusters, lent to tests."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest
from tests.support.fencing import write_fencing
from tests.support.hosts import Clusters, Lab

from leeward_lab.real.layout import Shape

_FAILED = pytest.StashKey[bool]()
_PROGRAMS = ("libvirtd", "etcd", "qemu-system-x86_64", "tini")

# host-b can lose the pool, and host-c has a fence device.
ORDINARY = Shape(etcd_members=1, controllers=2, hosts=3, detachable_pool=("host-b",))
THREE_ETCD = Shape(etcd_members=3, controllers=2, hosts=2)
RETAINING = Shape(etcd_members=1, controllers=1, hosts=1)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, "pytest.CallInfo[None]", None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed:
        item.stash[_FAILED] = True


@pytest.fixture(scope="session")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    directory = tmp_path_factory.mktemp("clusters")
    made = Clusters(directory)
    yield made
    asyncio.run(made.destroy())


@pytest.fixture
async def lab(request: pytest.FixtureRequest, clusters: Clusters) -> AsyncIterator[Lab]:
    """The ordinary cluster: three hosts, two controllers, one etcd."""
    async with clusters.lend(ORDINARY, config=_config, failed=lambda: _failed(request)) as lent:
        yield lent


@pytest.fixture
async def lab_with_three_etcd(request: pytest.FixtureRequest, clusters: Clusters) -> AsyncIterator[Lab]:
    """Two hosts, two controllers, three etcd members."""
    async with clusters.lend(THREE_ETCD, failed=lambda: _failed(request)) as lent:
        yield lent


@pytest.fixture
async def lab_that_retains(request: pytest.FixtureRequest, clusters: Clusters) -> AsyncIterator[Lab]:
    """One host and one controller, which keeps what is deleted for an hour."""
    async with clusters.lend(RETAINING, config=_retention, failed=lambda: _failed(request)) as lent:
        yield lent


def _retention(directory: Path) -> Path:
    written = directory / "controller.toml"
    written.write_text("deleted_retention_s = 3600\n")
    return written


def _config(directory: Path) -> Path:
    return write_fencing(directory, host="host-c")


def _failed(request: pytest.FixtureRequest) -> bool:
    return bool(request.node.stash.get(_FAILED, False))
