"""`leeward dev`: a whole cluster in one process, for people who write clients. No root, and nothing is kept."""

import asyncio
import gc
import random
import signal
from typing import Annotated

import typer

_TRY = """Leeward listens on {address} (plain text, this machine only). Nothing is kept when it ends.

  export LEEWARD_ENDPOINT={address}
  leeward instance create web-1 --image tiny --flavor small
  leeward instance list --watch
  leeward instance live-migrate web-1
"""


def command(
    listen: Annotated[str, typer.Option(help="Loopback address and port to serve on; port 0: any free one.")] = (
        "127.0.0.1:7443"
    ),
    nodes: Annotated[int, typer.Option(min=1, max=100, help="How many simulated hosts.")] = 3,
    verbose: Annotated[bool, typer.Option(help="Write the controller's and agents' logs.")] = False,
) -> None:
    """Run a cluster of simulated hosts in this process, with the real API and controller."""
    from leeward.logs import set_up_logs

    set_up_logs(level="info" if verbose else "error")
    asyncio.run(_serve(listen, nodes))


async def _serve(listen: str, nodes: int) -> None:
    # Hundreds of modules are about to be imported, and nothing of that is garbage.
    gc.disable()
    from leeward.clock import RandomIds, SystemClock
    from leeward_lab.simulated.cluster import SimulatedCluster
    from leeward_lab.simulated.serving import ready, serving, stock

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    cluster = SimulatedCluster(clock=SystemClock(), ids=RandomIds(), rng=random.SystemRandom(), nodes=nodes)
    await cluster.start_nodes()
    try:
        async with serving(cluster, "control-1", listen=listen) as served:
            await stock(cluster, served.core)
            await ready(served, nodes=nodes)
            gc.enable()
            typer.echo(_TRY.format(address=served.address))
            await stop.wait()
    finally:
        await cluster.stop()
