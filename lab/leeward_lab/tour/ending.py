"""The last stops: history, deletion and its return, and an audit that finds nothing left."""

from leeward_lab.tour.guide import Guide
from leeward_lab.tour.untrue import check


async def events(guide: Guide) -> None:
    """All that was done to the guest, by whom, and how it ended."""
    guest = guide.guest("web-1")
    async with guide.stop("events", guest) as visit:
        history = await guide.admin.json("instance", "events", "web-1")
        check(len(history) >= 10, f"its history should tell of more than {len(history)} operations")
        check(all(event.get("steps") for event in history), "each should tell its steps")
        visit.verified = f"{len(history)} operations, each with who, when, outcome and step times"


async def delete(guide: Guide) -> None:
    """Deleted, brought back, deleted for good."""
    guest = guide.guest("web-1")
    boots = await guest.boots()
    async with guide.stop("delete", guest) as visit:
        await guide.admin("instance", "delete", "web-1", "--yes")
        await guest.check_runs_nowhere()
        visit.verified = "kept for its retention time"
    async with guide.stop("undelete", guest) as visit:
        await guide.admin("instance", "undelete", "web-1")
        tick = await guest.until_booted_again(boots)
        visit.verified = f"boot {tick.boot} of the same disk"
    disk = await guest.disk()
    for name in ("web-1", "web-2", "web-3"):
        async with guide.stop("delete (purge)", guide.guest(name)) as visit:
            await guide.admin("instance", "delete", name, "--yes", "--purge")
            visit.verified = f"nothing of {name} is left"
    check(not disk.parent.exists(), f"{disk.parent} should be gone")


async def audit(guide: Guide) -> None:
    """Records, hosts and pools agree."""
    async with guide.stop("audit") as visit:
        report = await guide.admin.json("admin", "audit")
        check(not report["findings"] and not report["unreached_nodes"], f"the audit found: {report}")
        visit.verified = "records, hosts and pools agree; nothing is left over"
