"""Kills a process in the middle of a pool's verb, at each of its changes of the file system in turn.

`python -m tests.support.pool_cuts VERB DIRECTORY` prints a JSON list of what was wrong, and as its last line how many
cuts there were. After each cut nothing half-made may have the name of the real thing; the verb repeated must lead to
what it leads to uncut; and deleting the guest's disks must leave nothing of it.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support.pools import IDS, guest, store

from leeward.agent.types import CloudInit, DiskFormat, Firmware, RescueImage
from leeward_agent.firmware import Ovmf
from leeward_agent.storage.directory import DirectoryPool
from leeward_agent.storage.files import write_new
from leeward_agent.storage.overlay import backing_file, virtual_size_bytes

UID = "guest-1"
IMAGE = b"image" * 1024
OTHER = b"other" * 1024 + bytes(1024)
_CUT = 9
_CHANGES = frozenset(
    {"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.utime"}
    | {"subprocess.Popen", "fcntl.ioctl"}
)
FULL = replace(
    guest(digest=hashlib.sha256(IMAGE).hexdigest()),
    data_disks_gib=(1,),
    cloud_init=CloudInit(b"#cloud-config\n"),
    firmware=Firmware.UEFI,
)


class Verb:
    """What is cut, and what is done before it, uncut."""

    def __init__(self, *before: str, act: Callable[[DirectoryPool, DirectoryPool], Awaitable[object]]) -> None:
        self.before = before
        self.act = act


async def _create(here: DirectoryPool, _: DirectoryPool) -> None:
    await here.create_disk(FULL)


async def _rescue(here: DirectoryPool, _: DirectoryPool) -> None:
    digest = (await store(here, OTHER)).digest
    await here.create_disk(replace(FULL, rescue=RescueImage(digest, DiskFormat.RAW)))


async def _unrescue(here: DirectoryPool, _: DirectoryPool) -> None:
    await here.drop_rescue_disk(UID)


async def _replace(here: DirectoryPool, _: DirectoryPool) -> None:
    digest = (await store(here, OTHER)).digest
    await here.replace_disk(replace(FULL, image_digest=digest), operation="rebuild")


async def _resize(here: DirectoryPool, _: DirectoryPool) -> None:
    # Of the same size, so that only the kept disk tells that it was done.
    await here.resize_disk(FULL, operation="resize")


async def _confirm(here: DirectoryPool, _: DirectoryPool) -> None:
    await here.confirm_disk(UID)


async def _revert(here: DirectoryPool, _: DirectoryPool) -> None:
    await here.revert_disk(UID)


async def _snapshot(here: DirectoryPool, _: DirectoryPool) -> None:
    await here.snapshot_disk(UID, operation="snapshot")


async def _suspend(here: DirectoryPool, _: DirectoryPool) -> None:
    if not await here.has_memory(UID):
        path = await here.new_memory(UID)
        await asyncio.to_thread(write_new, path, b"LibvirtQemudSave")
        await here.keep_memory(UID)


async def _pull(here: DirectoryPool, there: DirectoryPool) -> None:
    await there.create_disk(FULL)
    await here.pull_disk(
        FULL, operation="move", read=lambda file, offset: there.read_disk(UID, file=file, offset=offset)
    )


async def _fetch(here: DirectoryPool, there: DirectoryPool) -> None:
    image = await store(there, OTHER)
    await here.fetch_image(
        digest=image.digest,
        format=DiskFormat.RAW,
        size_bytes=len(OTHER),
        read=lambda offset: there.read_image(digest=image.digest, offset=offset),
    )


async def _delete(here: DirectoryPool, _: DirectoryPool) -> None:
    await here.delete_disk(UID)


VERBS = {
    "create": Verb(act=_create),
    "rescue": Verb("create", act=_rescue),
    "unrescue": Verb("create", "rescue", act=_unrescue),
    "replace": Verb("create", "suspend", act=_replace),
    "resize": Verb("create", act=_resize),
    "confirm": Verb("create", "resize", act=_confirm),
    "revert": Verb("create", "resize", act=_revert),
    "snapshot": Verb("create", act=_snapshot),
    "suspend": Verb("create", act=_suspend),
    "pull": Verb(act=_pull),
    "fetch": Verb(act=_fetch),
    "delete": Verb("create", "rescue", "resize", "suspend", act=_delete),
}


@asynccontextmanager
async def _pools(directory: Path) -> AsyncGenerator[tuple[DirectoryPool, DirectoryPool], None]:
    firmware = Ovmf(directory / "code", directory / "variables")
    here, there = [
        await DirectoryPool.open(directory / name, IDS, find_firmware=lambda: firmware) for name in ("here", "there")
    ]
    try:
        yield here, there
    finally:
        await here.close()
        await there.close()


def _prepare(directory: Path, verb: Verb) -> None:
    (directory / "variables").write_bytes(b"variables")

    async def prepare() -> None:
        for name in ("here", "there"):
            (directory / name).mkdir()
            await DirectoryPool.create(directory / name, IDS)
        async with _pools(directory) as (here, there):
            await store(here, IMAGE)
            await store(there, IMAGE)
            for before in verb.before:
                await VERBS[before].act(here, there)

    asyncio.run(prepare())


def _run(directory: Path, act: Callable[[DirectoryPool, DirectoryPool], Awaitable[object]], *, cut_at: int = 0) -> int:
    """In a process of its own; killed before its `cut_at`-th change below the directory of the pool."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        asyncio.run(_act(directory, act, cut_at))
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise
    finally:
        os._exit(status)


async def _act(directory: Path, act: Callable[[DirectoryPool, DirectoryPool], Awaitable[object]], cut_at: int) -> None:
    async with _pools(directory) as pools:
        os.fsync = os.fdatasync = lambda fd: None  # A process that is killed loses nothing that it has written.
        if cut_at:
            _cut(str(directory / "here"), cut_at)
        await act(*pools)


def _cut(root: str, cut_at: int) -> None:
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in _CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE):
            concerned = event in ("subprocess.Popen", "fcntl.ioctl", "os.truncate") or root in str(arguments[0])
            if concerned:
                count += 1
                if count == cut_at:
                    os._exit(_CUT)

    sys.addaudithook(hook)


def _told(directory: Path) -> dict[str, object]:
    """All that the pool holds, in words that do not depend on when it was made."""
    root = directory / "here"
    told: dict[str, object] = {}
    for path in sorted(root.glob("instances/**/*")):
        name = str(path.relative_to(root))
        if path.name == "disk.json":
            told[name] = json.loads(path.read_bytes())
        elif path.name.endswith(".qcow2"):
            told[name] = (virtual_size_bytes(path), backing_file(path))
        elif path.name != ".lock":
            told[name] = path.stat().st_size if path.is_file() else "folder"
    for path in sorted(root.glob("images/**/*")) + sorted(root.glob("images/.[pu]*")):
        told[str(path.relative_to(root))] = path.stat().st_size if path.is_file() else "folder"
    return told


def _false_names(directory: Path) -> Iterator[str]:
    """What has the name of a real thing and is none: disks that are not whole, or whose image may be deleted."""
    root = directory / "here"
    for path in root.glob("instances/*/*.qcow2"):
        backing = backing_file(path)
        image = Path(os.path.normpath(path.parent / backing))
        if backing and not (image.with_suffix(".users") / path.parent.name).exists():
            yield f"{path.name} is based on an image that does not know it"
        if virtual_size_bytes(path) == 0 or path.stat().st_size == 0:
            yield f"{path.name} is not whole"
    for name, least in (("seed.iso", 2048), ("nvram.fd", 9), ("memory.save", 16)):
        for path in root.glob(f"instances/*/{name}"):
            if path.stat().st_size < least:
                yield f"{name} is not whole"
    for path in root.glob("images/*.raw"):
        if path.stat().st_size not in (len(IMAGE), len(OTHER)):
            yield f"{path.name} is not whole"


def _problems(base: Path, work: Path, verb: Verb, wanted: dict[str, object], cut_at: int) -> Iterator[str]:
    had_root = (base / "here" / "instances" / UID / "root.qcow2").exists() and verb.act is not _delete
    yield from _false_names(work)
    if had_root and not (work / "here" / "instances" / UID / "root.qcow2").exists():
        yield "the root disk is not there"
    copy = work.with_name("deleted")
    shutil.copytree(work, copy, symlinks=True)
    status = _run(copy, _delete)
    left = [name for name in _told(copy) if UID in name]
    if status or left:
        yield f"deleting answered {status} and left {left}"
    shutil.rmtree(copy)
    status = _run(work, verb.act)
    if status:
        yield f"repeating it failed with {status}"
    found = _told(work)
    if found != wanted:
        differing = {name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)}
        yield f"repeating it led to {[(name, found.get(name), wanted.get(name)) for name in sorted(differing)]}"


def main() -> None:
    """See the module."""
    name, directory = sys.argv[1], Path(sys.argv[2])
    verb, base, work = VERBS[name], directory / "base", directory / "work"
    base.mkdir()
    _in_child(lambda: _prepare(base, verb))
    shutil.copytree(base, work, symlinks=True)
    assert _run(work, verb.act) == 0
    wanted = _told(work)
    cut_at, problems = 0, []
    status = _CUT
    while status == _CUT:
        cut_at += 1
        shutil.rmtree(work)
        shutil.copytree(base, work, symlinks=True)
        status = _run(work, verb.act, cut_at=cut_at)
        if status == _CUT:
            problems += [f"cut {cut_at}: {each}" for each in _problems(base, work, verb, wanted, cut_at)]
    if status:
        problems.append(f"uncut it failed with {status}")
    print(json.dumps(problems, indent=1))
    print(cut_at - 1)


def _in_child(call: Callable[[], None]) -> None:
    """Threads must not be there when this process forks."""
    pid = os.fork()
    if not pid:
        status = 1
        with contextlib.suppress(Exception):
            call()
            status = 0
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


if __name__ == "__main__":
    main()
