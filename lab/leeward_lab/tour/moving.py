"""Stops about places: migrate cold and live, shared and local disks, drain, evacuate."""

import asyncio
import time

from leeward_lab.tour.guest import Guest
from leeward_lab.tour.guide import Guide
from leeward_lab.tour.untrue import Untrue, check

_FAILOVER_S = 60.0


async def migrate(guide: Guide) -> None:
    """Cold, then live, over the shared pool."""
    guest = guide.guest("web-1")
    boots = await guest.boots()
    async with guide.stop("migrate", guest) as visit:
        await guide.admin("instance", "migrate", "web-1", "--to", "host-b")
        tick = await guest.until_booted_again(boots)
        await guest.check_runs_on("host-b")
        visit.verified = f"boot {tick.boot} on the other host, nothing left on the first"
    async with guide.stop("live-migrate", guest) as visit:
        before = (await guest.ticks())[-1]
        await guide.admin("instance", "live-migrate", "web-1", "--to", "host-a")
        await guest.check_runs_on("host-a")
        tick = await guest.until_writing(after_line=before.line)
        check(tick.boot == before.boot, "it booted instead of going on")
        visit.verified = "the same boot goes on; no line is missing"
    async with guide.stop("live-migrate (refused)", guest) as visit:
        said = await guide.admin.refused("instance", "live-migrate", "web-1", "--to", "host-a")
        check("already" in said, f"it should say that it is there: {said}")
        visit.verified = "to the host it is on: refused before the guest is touched"


async def migrate_local(guide: Guide) -> None:
    """Cold, then live, with the disk: each host has a pool of its own."""
    guest = guide.guest("web-2")
    async with guide.stop("create (local disk)") as visit:
        await guide.admin(
            "instance", "create", "web-2", "--image", "tiny", "--flavor", "tiny",
            "--storage", "local", "--node", "host-a",
        )  # fmt: skip
        await guest.until_writing()
        local = guide.cluster.local_pool("host-a") / "instances" / (await guest.record())["uid"]
        check(local.exists(), "its disk should be in the pool of its host alone")
        visit.verified = "its image was fetched into the pool of its host alone"
    async with guide.stop("migrate (local)", guest) as visit:
        await guide.admin("instance", "migrate", "web-2", "--to", "host-b")
        tick = await guest.until_writing(boot=2)
        await guest.check_runs_on("host-b")
        check(not local.exists(), "its disk should be gone from the first host")
        visit.verified = f"its disk moved agent to agent; boot {tick.boot} goes on with line {tick.line}"
    async with guide.stop("live-migrate (local)", guest) as visit:
        before = (await guest.ticks())[-1]
        await guide.admin("instance", "live-migrate", "web-2", "--to", "host-a")
        await guest.check_runs_on("host-a")
        tick = await guest.until_writing(after_line=before.line)
        check(tick.boot == before.boot, "it booted instead of going on")
        record = await guest.disk_record()
        check(not record.missing(), f"its disk lacks lines {record.missing()}")
        visit.verified = f"memory and disk moved; the disk holds every line up to {record.lines}"


async def drain(guide: Guide) -> None:
    """A node is emptied for maintenance, and gets back what left."""
    guest = guide.guest("web-1")
    async with guide.stop("drain", guest) as visit:
        boot = (await guest.ticks())[-1].boot
        await guide.admin("node", "drain", "host-a")
        node = await guide.admin.json("node", "get", "host-a")
        check(node["condition"].endswith("MAINTENANCE"), f"host-a should be in maintenance: {node['condition']}")
        check(int(node.get("instance_count", 0)) == 0, "host-a should hold nothing any more")
        check(await guest.host() != "host-a", "web-1 should have left")
        visit.verified = "host-a is empty and in maintenance; what ran moved while it ran"
    async with guide.stop("uncordon", guest) as visit:
        await guide.admin("node", "uncordon", "host-a", "--bring-back")
        await _until_on(guest, "host-a")
        check((await guest.ticks())[-1].boot == boot, "it booted on the way")
        visit.verified = "what had left is back, in the same boot"


async def evacuate(guide: Guide) -> None:
    """The power of a host is cut; its guests come back elsewhere, in the state that they had."""
    guest = guide.guest("web-3")
    host = await guest.host()
    boots = await guest.boots()
    async with guide.stop("evacuate", guest) as visit:
        begun_s = time.monotonic()
        await guide.cluster.host(host).power_off()
        await _until_elsewhere(guest, host)
        restarted_s = time.monotonic() - begun_s
        tick = await guest.until_booted_again(boots)
        record = await guest.disk_record()
        check(not record.missing(), f"its disk lacks lines {record.missing()}")
        visit.verified = f"elsewhere {restarted_s:.1f} s after the power was cut; boot {tick.boot} of the same disk"
    await guide.cluster.host(host).start()
    await guide.cluster.start_host_services(host)


async def _until_on(guest: Guest, host: str) -> None:
    deadline_s = time.monotonic() + _FAILOVER_S
    while time.monotonic() < deadline_s:
        record = await guest.record()
        if record.get("node") == f"nodes/{host}" and not record.get("current_operation"):
            return
        await asyncio.sleep(0.3)
    raise Untrue(f"{guest.name} did not come to {host} within {_FAILOVER_S:g} s")


async def _until_elsewhere(guest: Guest, host: str) -> None:
    deadline_s = time.monotonic() + _FAILOVER_S
    while time.monotonic() < deadline_s:
        if await guest.host() not in ("", host):
            return
        await asyncio.sleep(0.2)
    raise Untrue(f"{guest.name} was not restarted elsewhere within {_FAILOVER_S:g} s")
