"""Two cheap ones: a transaction of etcd as our store sends it, and the wall time of a CLI command."""

import asyncio
import os
import sys
import time
from pathlib import Path

from bench.layout import ADMIN
from bench.numbers import add_latency, median
from bench.plane import Plane
from bench.report import Result
from leeward.errors import FailedPrecondition
from leeward.identity import Role
from leeward.store.port import ModRevisionIs, Put

TRANSACTIONS = 300
COMMANDS = 7
_KEY = "/bench/key"


async def measure_store(plane: Plane) -> Result:
    """Transactions one after the other, each on what the one before wrote."""
    result = Result(
        "store",
        f"{TRANSACTIONS} reads and {TRANSACTIONS} compare-and-put transactions of 500 bytes, one at a time, by our own "
        "etcd client over TLS; one member, with fsync.",
    )
    reads, writes, revision = [], [], 0
    async with plane.store() as store:
        for number in range(-10, TRANSACTIONS):
            began = time.perf_counter()
            done = await store.transact([ModRevisionIs(_KEY, revision)], [Put(_KEY, bytes(500))])
            written = time.perf_counter()
            await store.get(_KEY)
            ended = time.perf_counter()
            revision = done.revision
            if number >= 0:
                writes.append(written - began)
                reads.append(ended - written)
    add_latency(result, "transaction", writes)
    add_latency(result, "read", reads)
    return result


async def measure_cli(plane: Plane) -> Result:
    """Commands one after the other, each a process of its own."""
    result = Result("cli", f"Median wall time of {COMMANDS} runs, the interpreter's start included.")
    await plane.populate(200)
    program = str(Path(sys.executable).parent / "leeward")
    for name, words in {
        "leeward --help": ["--help"],
        "leeward instance list (all)": ["instance", "list"],
        "leeward instance get": ["instance", "get", "more-0199"],
        "python -c pass": [],
    }.items():
        command = [program, *words] if words else [sys.executable, "-c", "pass"]
        if "get" in words:
            command[-1] = (await plane.client.list_instances("projects/-")).items[0].name
        result.add(name, 1000 * median([await _run(plane, command) for _ in range(COMMANDS)]), "ms")
    return result


async def _run(plane: Plane, command: list[str]) -> float:
    layout = plane.layout
    environment = {
        **os.environ,
        "LEEWARD_ENDPOINT": ",".join(layout.endpoints),
        "LEEWARD_TLS_DIR": str(layout.certificate_directory(Role.ADMIN, ADMIN)),
    }
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        _, told = await process.communicate()
    if process.returncode != 0:
        raise FailedPrecondition(f"{' '.join(command)} ended with {process.returncode}: {told.decode()}")
    return time.perf_counter() - began
