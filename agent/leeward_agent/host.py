"""What the agent finds out about its host, and the directories it needs there."""

import asyncio
import json
import os
import pwd
from pathlib import Path

from leeward.clock import Clock, Ids
from leeward.errors import FailedPrecondition, InvalidArgument
from leeward_agent.hypervisors.libvirt.domain_xml import Accelerator
from leeward_agent.hypervisors.libvirt.probe import find_accelerator
from leeward_agent.settings import AgentSettings
from leeward_agent.storage.files import replace_durably

_ACCELERATOR_FILE = "accelerator.json"


def make_directories(settings: AgentSettings) -> None:
    """Make those that are missing, private to the agent and, where QEMU needs it, to QEMU.

    Blocking. Raises FailedPrecondition, InvalidArgument (no such user).
    """
    try:
        settings.state_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.console_directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        for directory in (settings.socket_directory, settings.console_socket_directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if settings.socket_owner:
                os.chown(directory, pwd.getpwnam(settings.socket_owner).pw_uid, -1)
    except KeyError as error:
        raise InvalidArgument.field("socket_owner", f"there is no user {settings.socket_owner!r} here") from error
    except OSError as error:
        raise FailedPrecondition(f"cannot make {error.filename}: {error.strerror}") from error


async def accelerator(settings: AgentSettings, *, boot: str, clock: Clock, ids: Ids) -> Accelerator:
    """How guests are executed here; found out once a boot, since the finding takes seconds that a restarted agent,
    whose lease is running out, has not got.
    """
    path = settings.state_directory / _ACCELERATOR_FILE
    known = await asyncio.to_thread(_read, path, boot)
    if known is not None:
        return known
    found = await find_accelerator(clock=clock)
    content = json.dumps({"boot_id": boot, "accelerator": found.value}).encode()
    await asyncio.to_thread(replace_durably, path, content, token=ids.new())
    return found


def _read(path: Path, boot: str) -> Accelerator | None:
    try:
        content = json.loads(path.read_text())
        return Accelerator(content["accelerator"]) if content["boot_id"] == boot else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        # Whatever is wrong with it, it is only kept to save time.
        return None
