"""Stops about running and standing still: create, stop, start, reboot, pause, suspend, lock, crash dump, console."""

import asyncio

from leeward_lab.tour.guide import Guide
from leeward_lab.tour.untrue import check

_STILL_S = 2.5


async def create(guide: Guide) -> None:
    """Launch the guest that most of the tour is about."""
    guest = guide.guest("web-1")
    async with guide.stop("create") as visit:
        await guide.admin(
            "instance", "create", "web-1", "--image", "tiny", "--flavor", "tiny", "--node", "host-a",
            "--data-disk", "1", "--user-data", str(guide.cluster.lab.directory / "user-data"),
        )  # fmt: skip
        tick = await guest.until_writing()
        await guest.until_console(lambda text: "seed user-data: #cloud-config" in text, what="its cloud-init seed")
        await guest.check_runs_on("host-a")
        visit.verified = f"it writes (line {tick.line}), and has seen its seed and its data disk"


async def stop_and_start(guide: Guide) -> None:
    """Off and on again, on the same disk."""
    guest = guide.guest("web-1")
    before = (await guest.ticks())[-1].line
    async with guide.stop("stop", guest) as visit:
        await guide.admin("instance", "stop", "web-1")
        await guest.check_runs_nowhere()
        visit.verified = "the guest heard the power button" if "power button" in await guest.console() else "stopped"
    async with guide.stop("start", guest) as visit:
        await guide.admin("instance", "start", "web-1")
        tick = await guest.until_writing(after_line=before, boot=2)
        visit.verified = f"boot {tick.boot} from the same disk, which goes on with line {tick.line}"


async def reboot(guide: Guide) -> None:
    """Softly, then hard."""
    guest = guide.guest("web-1")
    for mode, flags in (("soft", ()), ("hard", ("--hard",))):
        boots = await guest.boots()
        async with guide.stop(f"reboot ({mode})", guest) as visit:
            await guide.admin("instance", "reboot", "web-1", *flags)
            tick = await guest.until_writing(boot=boots + 1)
            visit.verified = f"boot {tick.boot}"


async def pause(guide: Guide) -> None:
    """Halted and going on, without a boot between."""
    guest = guide.guest("web-1")
    boots = await guest.boots()
    async with guide.stop("pause", guest) as visit:
        await guide.admin("instance", "pause", "web-1")
        line = (await guest.ticks())[-1].line
        await asyncio.sleep(_STILL_S)
        now = (await guest.ticks())[-1].line
        check(now == line, f"it wrote lines {line + 1} to {now} while it was paused")
        visit.verified = f"no line in {_STILL_S:g} s"
    async with guide.stop("unpause", guest) as visit:
        await guide.admin("instance", "unpause", "web-1")
        tick = await guest.until_writing(after_line=line)
        check(await guest.boots() == boots, "it booted instead of going on")
        visit.verified = f"goes on with line {line + 1} in the same boot (uptime {tick.uptime_s:.0f} s)"


async def suspend(guide: Guide) -> None:
    """Written to disk and brought back, without a boot between."""
    guest = guide.guest("web-1")
    boots, before = await guest.boots(), (await guest.ticks())[-1]
    async with guide.stop("suspend", guest) as visit:
        await guide.admin("instance", "suspend", "web-1")
        await guest.check_runs_nowhere()
        memory = (await guest.disk()).with_name("memory.save")
        check(memory.exists(), f"{memory} should hold its memory")
        visit.verified = f"no process; {memory.stat().st_size >> 20} MiB of memory lie in the pool"
    async with guide.stop("resume", guest) as visit:
        await guide.admin("instance", "resume", "web-1")
        tick = await guest.until_writing(after_line=before.line)
        check(await guest.boots() == boots, "it booted instead of going on")
        check(not memory.exists(), "its memory file should be gone once it was used")
        visit.verified = f"goes on in the same boot (uptime {tick.uptime_s:.0f} s); the memory file is gone"


async def lock(guide: Guide) -> None:
    """A lock keeps others out, and says why."""
    guest = guide.guest("web-1")
    async with guide.stop("lock", guest) as visit:
        await guide.admin("instance", "lock", "web-1", "--reason", "audit until noon")
        said = await guide.alice.refused("instance", "stop", "web-1")
        check("audit until noon" in said, f"the refusal should give the lock's reason: {said}")
        visit.verified = "another user's stop is refused with the reason"
    async with guide.stop("unlock", guest) as visit:
        await guide.admin("instance", "unlock", "web-1")
        check("lock" not in await guest.record(), "it should be locked no more")
        visit.verified = "not locked any more"


async def crash_dump(guide: Guide) -> None:
    """The guest's kernel tells of the interrupt."""
    guest = guide.guest("web-1")
    async with guide.stop("crash-dump", guest) as visit:
        await guide.admin("instance", "crash-dump", "web-1")
        await guest.until_console(lambda text: "NMI" in text, what="tell of an NMI on its console")
        visit.verified = "its kernel tells of the interrupt on the console"


async def console(guide: Guide) -> None:
    """A command typed on the console is answered."""
    guest = guide.guest("web-1")
    async with guide.stop("console", guest) as visit:
        said = await guide.admin("instance", "console", "web-1", "--linger", "4s", input=b"echo sum=$((40+2))\n")
        check("sum=42" in said, f"the guest should have answered: {said[-200:]!r}")
        visit.verified = "the guest ran what was typed: sum=42"
