"""`leeward backup-policy` and `leeward admin audit`, as their users run them."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.test_cli_api import Shell
from tests.support.public import IMAGE, Face, PublicLab

from leeward import keys
from leeward_controller.domain.node import NodeAllocation, Reservation
from leeward_controller.records import ALLOCATIONS, Commit, Stored


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[PublicLab]:
    async with PublicLab(files=tmp_path, nodes=2) as started:
        yield started


@pytest.fixture
async def face(lab: PublicLab) -> Face:
    return await lab.add_controller()


@pytest.fixture
async def leeward(face: Face, tmp_path: Path) -> Shell:
    """The command line of a cluster with the instance `web-1`."""
    shell = Shell(face, home=tmp_path / "home")
    (tmp_path / "disk.raw").write_bytes(IMAGE)
    for words in (
        ("image", "upload", "tiny", str(tmp_path / "disk.raw")),
        ("flavor", "create", "small", "--vcpus", "1", "--memory", "512M", "--disk", "1G"),
        ("instance", "create", "web-1", "--image", "tiny", "--flavor", "small"),
    ):
        done = await shell(*words)
        assert done.code == 0, done
    return shell


async def test_a_backup_policy_from_its_making_to_its_end(leeward: Shell) -> None:
    create = ("backup-policy", "create", "nightly", "--schedule", "0 2 * * *", "--keep", "7", "--instance", "web-1")
    checked = await leeward(*create, "--validate-only")
    assert (checked.code, checked.out) == (0, "")
    made = (await leeward(*create, "--time-zone", "Europe/Berlin", "-o", "json")).json
    assert made["name"] == "projects/default/backupPolicies/nightly"
    assert made["instances"] == ["projects/default/instances/web-1"]
    assert (await leeward(*create)).code == 4
    table = (await leeward("backup-policy", "list")).out
    assert table.splitlines()[0].split("  ")[0] == "NAME"
    for word in ("nightly", "0 2 * * *", "Europe/Berlin", "7", "web-1", "never"):
        assert word in table
    updated = await leeward("backup-policy", "update", "nightly", "--keep", "2", "--pause", "-o", "json")
    assert (updated.json["keep_count"], updated.json["paused"]) == (2, True)
    assert "paused" in (await leeward("backup-policy", "list")).out
    refused = await leeward("backup-policy", "update", "nightly", "--add-instance", "web-9", "-o", "json")
    assert refused.code == 2
    assert "web-9 does not exist" in refused.error["message"]
    wrong = await leeward("backup-policy", "update", "nightly", "--schedule", "soon")
    assert wrong.code == 2
    assert "five fields of cron" in wrong.err
    shown = (await leeward("backup-policy", "show", "nightly")).out
    assert "schedule:" in shown
    assert (await leeward("backup-policy", "delete", "nightly", "--yes")).out == "Deleted nightly.\n"
    assert (await leeward("backup-policy", "show", "nightly")).code == 3


async def test_an_audit_tells_drift_by_its_exit_code_and_mends_it(lab: PublicLab, leeward: Shell) -> None:
    clean = await leeward("admin", "audit")
    assert (clean.code, clean.out, clean.err) == (0, "", "No drift.\n")

    core = lab.cluster.controllers["controller-0"].core
    assert core is not None
    key = keys.allocation("host-a")
    stored = await core.records.get(ALLOCATIONS, key) or Stored(key, NodeAllocation("host-a"), 0, 0)
    ghost = Reservation("gone", "projects/p/instances/gone", 2, 1024, 3, "shared")
    await core.records.commit(Commit().replace(stored, stored.value.with_reservation(ghost)))
    running = next(iter(core.view.instances.values()))
    await core.records.commit(Commit().replace(running, replace(running.value, current_operation="operations/x")))

    found = await leeward("admin", "audit")
    assert found.code == 1
    assert found.out.splitlines()[:3] == [
        "RESERVATION_OF_NO_INSTANCE  nodes/host-a",
        "  holds 2 vCPUs, 1024 MiB and 3 GiB for projects/p/instances/gone (gone), which does not exist",
        "  to repair: free what is held",
    ]
    assert found.err == "2 found; --repair would mend 2.\n"
    names = await leeward("admin", "audit", "-o", "name")
    assert (names.code, names.out.splitlines()) == (1, ["nodes/host-a", "projects/default/instances/web-1"])

    mended = await leeward("admin", "audit", "--repair", "-o", "json")
    assert [(each["kind"], each["repaired"]) for each in mended.json["findings"]] == [
        ("KIND_RESERVATION_OF_NO_INSTANCE", True),
        ("KIND_OPERATION_STILL_CURRENT", True),
    ]
    assert (await leeward("admin", "audit")).err == "No drift.\n"
