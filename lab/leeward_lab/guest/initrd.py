"""The guest's initial RAM disk: busybox, a few modules and one script. The same input gives the same bytes."""

import gzip
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from leeward_lab.guest.commands import LabError, run_tool
from leeward_lab.guest.kernel import Kernel

INIT_SCRIPT = Path(__file__).with_name("init.sh")
CHURN_SCRIPT = Path(__file__).with_name("churn.sh")
BUSYBOX = Path("/bin/busybox")

# What the first tick needs: the disk, and the power button, so that a stop is heard from the start.
FIRST_MODULES = ("virtio_pci", "virtio_blk", "button", "evdev")
# Loaded after it: the seed's file systems and drives, network, agent port, statistics.
LATER_MODULES = (
    "virtio_net", "virtio_console", "virtio_rng", "virtio_balloon", "isofs", "vfat", "nls_ascii", "nls_cp437", "sr_mod",
    "ata_piix", "virtio_scsi",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Entry:
    """One member of the archive: a directory, a file or a symbolic link."""

    name: str
    mode: int
    content: bytes = b""


def build_initrd(kernel: Kernel, *, ballast_mib: int = 0, churn_mib: int = 0) -> bytes:
    """The compressed archive. `LabError` when busybox is missing, or a module or a tool is.

    The guest fills `ballast_mib` of its memory with data before its first tick, and writes `churn_mib` over and over.
    """
    first = kernel.with_dependencies(FIRST_MODULES)
    later = [path for path in kernel.with_dependencies(LATER_MODULES) if path not in first]
    script = INIT_SCRIPT.read_text().replace("@BALLAST_MIB@", str(ballast_mib)).replace("@CHURN_MIB@", str(churn_mib))
    for mark, modules in (("@FIRST@", first), ("@LATER@", later)):
        script = script.replace(mark, " ".join(path.stem for path in modules))
    entries = [_directory(name) for name in ("bin", "dev", "lib", "lib/modules", "mnt", "proc", "run", "sys")]
    entries.append(_Entry("init", stat.S_IFREG | 0o755, script.encode()))
    entries += _busybox()
    entries.append(_Entry("bin/churn", stat.S_IFREG | 0o755, CHURN_SCRIPT.read_bytes()))
    for path in (*first, *later):
        entries.append(_Entry(f"lib/modules/{path.name}", stat.S_IFREG | 0o644, path.read_bytes()))
    return gzip.compress(_newc(entries), compresslevel=9, mtime=0)


def _directory(name: str) -> _Entry:
    return _Entry(name, stat.S_IFDIR | 0o755)


def _busybox() -> Iterable[_Entry]:
    if not BUSYBOX.exists():
        raise LabError(f"{BUSYBOX} is missing: install busybox-static")
    yield _Entry("bin/busybox", stat.S_IFREG | 0o755, BUSYBOX.read_bytes())
    for applet in sorted(run_tool([BUSYBOX, "--list"], timeout_s=10).decode().split()):
        if applet != "busybox":
            yield _Entry(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox")


def _newc(entries: Iterable[_Entry]) -> bytes:
    """The archive in cpio's `newc` format (Documentation/driver-api/early-userspace/buffer-format.rst of Linux)."""
    parts: list[bytes] = []
    for inode, entry in enumerate([*entries, _Entry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        # inode mode uid gid links mtime size, device and rdevice as two numbers each, name length, checksum.
        numbers = (inode, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, 0, 0, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % number for number in numbers)
        parts += [_padded(header + name), _padded(entry.content)]
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
