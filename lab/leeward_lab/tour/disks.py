"""Stops about disks and sizes: snapshot, resize, rescue, rebuild, shelve, backup."""

import asyncio
import itertools
import time

from leeward_lab.tour.guide import Guide
from leeward_lab.tour.untrue import Untrue, check

_LONGEST_GAP_S = 1.0
_TICK_S = 1.0
_BACKUP_S = 100.0


async def snapshot(guide: Guide) -> None:
    """An image of a guest that goes on writing; and the image boots."""
    guest = guide.guest("web-1")
    async with guide.stop("snapshot", guest) as visit:
        before = (await guest.ticks())[-1]
        await guide.admin("instance", "snapshot", "web-1", "web-1-copy")
        after = await guest.until_writing(after_line=before.line + 1)
        ticks = [tick for tick in await guest.ticks() if before.line <= tick.line <= after.line]
        gaps = [later.uptime_s - earlier.uptime_s for earlier, later in itertools.pairwise(ticks)]
        gap_s = max(gaps) - _TICK_S
        check(gap_s <= _LONGEST_GAP_S, f"it stood still for {gap_s:.1f} s")
        visit.verified = f"the guest wrote on (longest pause {max(0.0, gap_s):.1f} s); "
        copy = guide.guest("copy-1")
        await guide.admin("instance", "create", "copy-1", "--image", "web-1-copy", "--flavor", "tiny")
        tick = await copy.until_writing(after_line=before.line)
        await guide.admin("instance", "delete", "copy-1", "--yes", "--purge")
        visit.verified += f"the image boots, and goes on with line {tick.line}"


async def resize(guide: Guide) -> None:
    """Larger and back, then larger for good."""
    guest = guide.guest("web-1")
    await _resize(guide, "web-1", flavor="small", mib=256)
    async with guide.stop("revert-resize", guest) as visit:
        boots = await guest.boots()
        await guide.admin("instance", "revert-resize", "web-1")
        await guest.until_booted_again(boots)
        record = await guest.record()
        check(record["flavor"].endswith("tiny"), "it should have its old flavor")
        check(_has_memory(await guest.check_runs_on(await guest.host()), mib=128), "it should have 128 MiB again")
        visit.verified = "128 MiB again, and the disk from before"
    await _resize(guide, "web-1", flavor="small", mib=256)
    async with guide.stop("confirm-resize", guest) as visit:
        await guide.admin("instance", "confirm-resize", "web-1")
        kept = (await guest.disk()).with_name("root.before-resize.qcow2")
        check(not kept.exists(), "the old disk should be gone")
        visit.verified = "the old disk is gone"


async def _resize(guide: Guide, name: str, *, flavor: str, mib: int) -> None:
    guest = guide.guest(name)
    async with guide.stop("resize", guest) as visit:
        boots = await guest.boots()
        await guide.admin("instance", "resize", name, "--flavor", flavor)
        await guest.until_booted_again(boots)
        command = await guest.check_runs_on(await guest.host())
        check(_has_memory(command, mib=mib), f"it should have {mib} MiB")
        kept = (await guest.disk()).with_name("root.before-resize.qcow2")
        check(kept.exists(), "the old disk should be kept")
        visit.verified = f"{mib} MiB of memory; the old disk is kept"


def _has_memory(command: str, *, mib: int) -> bool:
    """Whether QEMU's command line says so; versions of libvirt word it differently."""
    return f"-m {mib} " in command or f"-m size={mib * 1024}k" in command


async def rescue(guide: Guide) -> None:
    """Another system beside the broken disk, and back."""
    guest = guide.guest("web-1")
    async with guide.stop("rescue", guest) as visit:
        await guide.admin("instance", "rescue", "web-1", "--image", "tiny")
        record = await guest.disk_record()
        await guest.until_console(
            lambda text: "disk vdb sectors" in text and f"boots={record.boots} lines={record.lines}" in text,
            what="show its own disk as the second one",
        )
        visit.verified = f"the rescue system sees its disk as vdb, with all {record.lines} lines"
    async with guide.stop("unrescue", guest) as visit:
        boots = await guest.boots()
        await guide.admin("instance", "unrescue", "web-1")
        tick = await guest.until_booted_again(boots)
        check(tick.line > record.lines, f"its own disk had {record.lines} lines, it goes on with {tick.line}")
        check(not (await guest.disk()).with_name("rescue.qcow2").exists(), "the rescue disk should be gone")
        visit.verified = f"boot {tick.boot} from its own disk, which goes on with line {tick.line}"


async def rebuild(guide: Guide) -> None:
    """A new disk, the same identity."""
    guest = guide.guest("web-1")
    before = await guest.record()
    async with guide.stop("rebuild", guest) as visit:
        boots = await guest.boots()
        await guide.admin("instance", "rebuild", "web-1", "--image", "web-1-copy", "--yes")
        await guest.until_booted_again(boots)
        after = await guest.record()
        check(before["uid"] == after["uid"], "its uid should stay")
        check(before.get("network_interfaces") == after.get("network_interfaces"), "its addresses should stay")
        check(after["image"].endswith("web-1-copy"), "it should be of the new image")
        visit.verified = "a new disk of the image; uid and addresses as before"


async def shelve(guide: Guide) -> None:
    """Kept as an image, off its node, and back on another."""
    guest = guide.guest("web-3")
    await guide.admin("instance", "create", "web-3", "--image", "tiny", "--flavor", "tiny", "--node", "host-a")
    await guest.until_writing()
    line = (await guest.ticks())[-1].line
    async with guide.stop("shelve", guest) as visit:
        await guide.admin("instance", "shelve", "web-3")
        await guest.check_runs_nowhere()
        images = [image["name"].rpartition("/")[2] for image in await guide.admin.json("image", "list")]
        check("web-3-shelved" in images, f"there should be an image of it: {images}")
        visit.verified = "its node is free; an image holds its disk"
    async with guide.stop("unshelve", guest) as visit:
        await guide.admin("instance", "unshelve", "web-3", "--to", "host-b")
        tick = await guest.until_writing(after_line=line, boot=2)
        await guest.check_runs_on("host-b")
        visit.verified = f"boot {tick.boot} of the same disk content, on another node"


async def backup(guide: Guide) -> None:
    """A policy that runs by itself; its backup can be restored."""
    guest = guide.guest("web-3")
    async with guide.stop("backup-policy", guest) as visit:
        await guide.admin(
            "backup-policy", "create", "often", "--schedule", "* * * * *", "--keep", "1", "--instance", "web-3"
        )
        found = await _backup_of(guide, "web-3")
        await guide.admin("backup-policy", "delete", "often", "--yes")
        visit.verified = f"the controllers made {found} by themselves; "
        boots = await guest.boots()
        await guide.admin("instance", "rebuild", "web-3", "--image", found, "--yes")
        await guest.until_booted_again(boots)
        visit.verified += "restored by rebuild"


async def _backup_of(guide: Guide, name: str) -> str:
    deadline_s = time.monotonic() + _BACKUP_S
    while time.monotonic() < deadline_s:
        images = [str(image["name"]).rpartition("/")[2] for image in await guide.admin.json("image", "list")]
        found = [image for image in images if image.startswith(f"{name}-often-")]
        if found:
            return found[0]
        await asyncio.sleep(1.0)
    raise Untrue(f"there was no backup of {name} within {_BACKUP_S:g} s")
