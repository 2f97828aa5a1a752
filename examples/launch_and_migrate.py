"""Launch an instance, move it while it runs, delete it. Try it against `leeward dev`."""

import asyncio
import sys

from leeward.client import connect
from leeward.errors import LeewardError
from leeward.v1 import instance_service_pb2 as api
from leeward.v1.instance_pb2 import Instance
from leeward.v1.operation_service_pb2 import WatchOperationResponse

NAME = "projects/default/instances/example-1"


def show(update: WatchOperationResponse) -> None:
    """Called at every moment of an operation."""
    print(f"  {update.metadata.step} {update.metadata.percent} %")


async def main(endpoint: str) -> None:
    async with connect([endpoint]) as client:
        launch = await client.instances.CreateInstance(
            api.CreateInstanceRequest(
                parent="projects/default",
                instance_id="example-1",
                instance=Instance(flavor="flavors/small", image="projects/default/images/tiny"),
            )
        )
        await client.wait(launch, timeout_s=60, on_update=show)

        migrate = await client.instances.LiveMigrateInstance(api.LiveMigrateInstanceRequest(name=NAME))
        await client.wait(migrate, timeout_s=60, on_update=show)
        moved = await client.instances.GetInstance(api.GetInstanceRequest(name=NAME))
        print(f"{moved.name} runs on {moved.node}")

        delete = await client.instances.DeleteInstance(api.DeleteInstanceRequest(name=NAME))
        await client.wait(delete, timeout_s=60)


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7443"))
    except LeewardError as error:
        sys.exit(f"{error.specific_reason}: {error.message}")
