"""`make up` and `make down`: the demonstration's cluster, left running for playing."""

import argparse
import asyncio
import shutil
import sys
from pathlib import Path

from leeward.errors import LeewardError
from leeward.identity import Role
from leeward.logs import set_up_logs
from leeward.v1 import flavor_service_pb2
from leeward.v1.flavor_pb2 import Flavor
from leeward.v1.image_pb2 import DiskFormat
from leeward_lab.guest.commands import LabError
from leeward_lab.guest_image import build_guest_image, default_cache_dir
from leeward_lab.hosts.cluster import sweep
from leeward_lab.real.cluster import RealCluster
from leeward_lab.real.layout import ADMIN

_NAME = "playground"
_RETENTION_S = 3600


def main() -> None:
    """`up` starts the cluster, or tells of the one that runs; `down` removes it. Exits with 1 and why not."""
    parser = argparse.ArgumentParser(prog="python -m leeward_lab.playground", description="A cluster for playing.")
    parser.add_argument("action", choices=("up", "down"))
    parser.add_argument("--directory", type=Path, required=True)
    options = parser.parse_args()
    set_up_logs(level="error")
    directory: Path = options.directory.resolve()
    try:
        asyncio.run(_up(directory) if options.action == "up" else _down(directory))
    except (LabError, LeewardError) as error:
        sys.exit(f"{options.action} failed: {error}")


async def _up(directory: Path) -> None:
    _tell(await supply(directory, _NAME, detached=True), directory)


async def supply(directory: Path, name: str, *, detached: bool) -> RealCluster:
    """A cluster with an image and two flavors, in which deleted instances are kept for a while.

    On failure nothing of it stays.
    """
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    image = await asyncio.to_thread(build_guest_image, directory / "tiny.qcow2", cache_dir=default_cache_dir())
    config = directory / "controller.toml"
    await asyncio.to_thread(config.write_text, f"deleted_retention_s = {_RETENTION_S}\n")
    cluster = await RealCluster.start(directory / "cluster", name, detached=detached, controller_config=config)
    try:
        async with cluster.client() as client:
            await cluster.until_ready(client)
            await client.upload_image(
                parent="projects/default", image_id="tiny", path=image, format=DiskFormat.DISK_FORMAT_QCOW2
            )
            for flavor_id, memory_mib in (("tiny", 128), ("small", 256)):
                flavor = Flavor(vcpus=1, memory_mib=memory_mib, disk_gib=1)
                await client.flavors.CreateFlavor(
                    flavor_service_pb2.CreateFlavorRequest(flavor_id=flavor_id, flavor=flavor), timeout=10.0
                )
    except BaseException:
        await cluster.destroy()
        raise
    return cluster


def _tell(cluster: RealCluster, directory: Path) -> None:
    leeward = Path(sys.executable).parent / "leeward"
    first_host = cluster.shape.host_names[0]
    print(
        f"""The cluster is up: {", ".join(cluster.shape.host_names)}. `make down` removes it.

  export LEEWARD_ENDPOINT={",".join(cluster.endpoints)}
  export LEEWARD_TLS_DIR={cluster.certificate_directory(Role.ADMIN, ADMIN)}
  {leeward} node list
  {leeward} instance create web-1 --image tiny --flavor tiny
  {leeward} instance live-migrate web-1
  {leeward} instance console-log web-1 --follow

Cut the power of a host: {sys.executable} -m leeward_lab.hosts.power off {first_host} --cluster {directory / "cluster"}
Logs are in {cluster.lab.directory / "hosts"}/*/log."""
    )


async def _down(directory: Path) -> None:
    await sweep(_NAME)
    await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
    print("The cluster is down, and nothing of it is left.")


if __name__ == "__main__":
    main()
