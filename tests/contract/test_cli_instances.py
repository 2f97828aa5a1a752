"""`leeward instance` with every operation, and its console, against the real API of a simulated cluster."""

import asyncio
import json
import os
import pty
from base64 import b64encode
from pathlib import Path

from tests.contract.test_cli_api import PROGRAM, WAIT_S, Done, Shell, create, face, lab, leeward, read_all

__all__ = ["face", "lab", "leeward"]

KEY = "ssh-ed25519 " + b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32)).decode() + " me@home"


async def did(leeward: Shell, *arguments: str) -> str:
    """Run `leeward instance`, which must succeed; returns the state that it answers."""
    done = await leeward("instance", *arguments, "-o", "json")
    assert done.code == 0, done
    return str(done.json.get("state", "")).removeprefix("STATE_")


async def test_every_operation_has_its_command(leeward: Shell) -> None:
    await leeward("flavor", "create", "big", "--vcpus", "2", "--memory", "1G", "--disk", "1G")
    assert (await create(leeward)).code == 0
    for arguments, state in [
        (["pause"], "PAUSED"),
        (["unpause"], "ACTIVE"),
        (["suspend"], "SUSPENDED"),
        (["resume"], "ACTIVE"),
        (["crash-dump"], "ACTIVE"),
        (["resize", "--flavor", "big", "--auto-confirm", "1h"], "RESIZED"),
        (["revert-resize"], "ACTIVE"),
        (["resize", "--flavor", "big"], "RESIZED"),
        (["confirm-resize"], "ACTIVE"),
        (["rescue"], "RESCUED"),
        (["unrescue"], "ACTIVE"),
        (["rebuild", "--yes", "--image", "tiny"], "ACTIVE"),
        (["migrate", "--force"], "ACTIVE"),
        (["live-migrate", "--escalation", "pause"], "ACTIVE"),
        (["shelve", "--offload-after", "1h"], "SHELVED"),
        (["unshelve"], "ACTIVE"),
    ]:
        assert await did(leeward, arguments[0], "web-1", *arguments[1:]) == state, arguments

    image = await leeward("instance", "snapshot", "web-1", "golden", "--property", "os=none", "-o", "json")
    assert image.json["name"] == "projects/default/images/golden"
    assert image.json["properties"]["os"] == "none"
    steps = await leeward("instance", "events", "web-1", "--steps")
    assert steps.out.count("operation: ") == 18
    assert "step: " in steps.out
    wrong = await leeward("instance", "resume", "web-1")
    assert wrong.code == 4
    assert "Next: Bring it into one of these states first: SUSPENDED." in wrong.err


async def test_how_it_is_restarted_and_its_labels_can_be_changed(leeward: Shell) -> None:
    await create(leeward)
    changes = ["--restart-priority", "highest", "--ready-when", "tcp:10.0.0.5:5432", "--ready-timeout", "30s"]
    changed = (await leeward("instance", "update", "web-1", *changes, "--label", "tier=db", "-o", "json")).json
    assert changed["restart_priority"] == "RESTART_PRIORITY_HIGHEST"
    port = {"probe": "PROBE_TCP_PORT", "host": "10.0.0.5", "port": 5432, "timeout": "30s"}
    assert changed["readiness"] == port
    assert changed["labels"]["tier"] == "db"

    changes = ["--no-restart-on-failure", "--ready-when", "running", "--label", "env=prod", "--remove-label", "tier"]
    changed = (await leeward("instance", "update", "web-1", *changes, "-o", "json")).json
    assert changed["restart_on_failure"] is False
    assert "readiness" not in changed
    assert changed["labels"]["env"] == "prod"
    assert "tier" not in changed["labels"]
    assert changed["restart_priority"] == "RESTART_PRIORITY_HIGHEST", "what is not told stays"

    for wrong, why in [
        ([], "nothing is told to change"),
        (["--remove-label", "tier"], "'tier' is no label of it; there are: env"),
        (["--ready-when", "tcp:5432"], "'tcp:5432' is not running, guest-agent or tcp:HOST:PORT"),
        (["--ready-timeout", "5s"], "say --ready-when, too"),
        (["--ready-when", "guest-agent", "--ready-timeout", "1h"], "3600 is not from 1 to 600 s"),
    ]:
        refused = await leeward("instance", "update", "web-1", *wrong)
        assert refused.code == 2, refused
        assert why in refused.err


async def test_locks_are_told_in_the_list(leeward: Shell) -> None:
    await create(leeward)
    locked = await leeward("instance", "lock", "web-1", "--reason", "the auditors are in")
    assert "the auditors are in" in locked.out
    listed = await leeward("instance", "list")
    assert "LOCKED" in listed.out.splitlines()[0]
    unlocked = await leeward("instance", "unlock", "web-1", "-o", "json")
    assert unlocked.json["name"] == "projects/default/instances/web-1"
    assert "lock" not in unlocked.json
    assert "LOCKED" not in (await leeward("instance", "list")).out


async def test_all_that_can_be_asked_for_at_launch(leeward: Shell, tmp_path: Path) -> None:
    (tmp_path / "keys.pub").write_text(f"# mine\n{KEY}\n\n")
    (tmp_path / "user-data").write_text("#cloud-config\n")
    made = await create(
        leeward,
        "web-2",
        *("--user-data", str(tmp_path / "user-data"), "--ssh-key", str(tmp_path / "keys.pub"), "--ssh-key", KEY),
        *("--data-disk", "1", "--data-disk", "2G", "--storage", "shared", "--nic", "br0", "--nic", ""),
        *("--prefer-label", "zone=a", "-o", "json"),
    )
    assert made.json["cloud_init"] == {"user_data": "", "ssh_authorized_keys": [KEY, KEY]}
    assert made.json["data_disks_gib"] == [1, 2]
    assert made.json["storage"] == "STORAGE_SHARED"
    assert [each["bridge"] for each in made.json["network_interfaces"]] == ["br0", ""]
    assert made.json["placement"]["preferred_labels"] == {"zone": "a"}
    wrong, group, label = await asyncio.gather(
        create(leeward, "web-3", "--ssh-key", "ssh-rsa AAAA", "-o", "json"),
        create(leeward, "web-3", "--group", "web"),
        create(leeward, "web-3", "--require-label", "zone=moon"),
    )
    assert wrong.code == 2
    assert [each["field"] for each in wrong.error["fields"]] == ["instance.cloud_init.ssh_authorized_keys[0]"]
    assert group.code == 3
    assert "projects/default/groups/web does not exist" in group.err
    assert label.code == 5
    assert "zone" in label.err


async def piped(leeward: Shell, typed: bytes, *arguments: str) -> Done:
    """Run `leeward instance console` with something on its standard input."""
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        *("instance", "console", *arguments),
        env=leeward.environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(WAIT_S):
            out, err = await process.communicate(typed)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Done(process.returncode or 0, out.decode(), err.decode())


async def test_a_console_works_with_pipes(leeward: Shell) -> None:
    await create(leeward)
    answered = await piped(leeward, b"hello there\n", "web-1", "--linger", "3s")
    assert answered.code == 0, answered
    assert "hello there" in answered.out
    log = await piped(leeward, b"", "web-1", "--log")
    assert log.out.startswith("leeward-guest: boot 1")
    await leeward("instance", "stop", "web-1", "--force")
    stopped = await piped(leeward, b"", "web-1")
    assert stopped.code == 4
    assert json.loads((await leeward("instance", "get", "web-1", "-o", "json")).out)["state"] == "STATE_STOPPED"


async def test_a_console_at_a_terminal_is_raw_until_it_is_left(leeward: Shell) -> None:
    await create(leeward)
    screen, terminal = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        *("instance", "console", "web-1"),
        env=leeward.environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    try:
        async with asyncio.timeout(WAIT_S):
            seen = await asyncio.to_thread(read_all_until, screen, "Ctrl-] detaches.", "typed")
            os.write(screen, b"\x1d")
            rest = await asyncio.to_thread(read_all, screen)
            code = await process.wait()
    finally:
        if process.returncode is None:
            # Upon which whoever still reads the screen is told that it is over.
            process.kill()
            await process.wait()
        os.close(screen)
    assert code == 0, seen + rest
    assert "typed" in seen
    assert "Detached from web-1." in rest


def read_all_until(screen: int, greeting: str, typed: str) -> str:
    """What a terminal shows up to where the guest gives back what is typed once the greeting is there."""
    seen, sent = "", False
    while typed not in seen.partition(greeting)[2]:
        seen += os.read(screen, 65_536).decode(errors="replace")
        if greeting in seen and not sent:
            # Ctrl-C goes to the guest.
            os.write(screen, b"\x03" + typed.encode() + b"\n")
            sent = True
    return seen
