"""The guest's kernel: Debian's cloud kernel, fetched with apt and unpacked, never installed.

It suits a guest under emulation: compressed with LZ4 (fast to unpack), no drivers for real hardware, virtio as modules.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from leeward_lab.guest.commands import LabError, run_tool

_META_PACKAGE = "linux-image-cloud-amd64"
_PACKAGE = re.compile(r"^linux-image-(?P<release>[0-9][0-9a-z.+~-]*-cloud-amd64)$")


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel package: its release, its boot file, and the directory that holds its modules."""

    release: str
    image: Path
    modules_dir: Path

    def module(self, name: str) -> Path:
        """The file of one module; `-` and `_` are the same in a module's name."""
        wanted = name.replace("-", "_")
        for path in self.modules_dir.rglob("*.ko"):
            if path.stem.replace("-", "_") == wanted:
                return path
        raise LabError(f"kernel {self.release} has no module {name}")

    def with_dependencies(self, names: tuple[str, ...]) -> list[Path]:
        """The files of these modules and all they need, each after what it needs."""
        ordered: dict[Path, None] = {}
        for name in names:
            self._add(name, ordered)
        return list(ordered)

    def _add(self, name: str, ordered: dict[Path, None]) -> None:
        path = self.module(name)
        if path in ordered:
            return
        depends = run_tool(["modinfo", "-F", "depends", path], timeout_s=10).decode().strip()
        for needed in filter(None, depends.split(",")):
            self._add(needed, ordered)
        ordered[path] = None


def fetch_kernel(cache_dir: Path) -> Kernel:
    """The cloud kernel unpacked in `cache_dir`; the first time, the one that apt offers is downloaded (27 MB).

    `LabError` when apt knows none or cannot fetch it.
    """
    unpacked = cache_dir / "kernel"
    if not unpacked.is_dir():
        _download(cache_dir, unpacked)
    images = sorted(unpacked.glob("boot/vmlinuz-*"))
    if not images:
        raise LabError(f"{unpacked} holds no kernel; remove it to fetch one")
    release = images[-1].name.removeprefix("vmlinuz-")
    return Kernel(release=release, image=images[-1], modules_dir=unpacked / "lib/modules" / release)


def _download(cache_dir: Path, unpacked: Path) -> None:
    depends = run_tool(["apt-cache", "depends", "--important", _META_PACKAGE], timeout_s=30).decode()
    packages = [word for word in depends.split() if _PACKAGE.match(word)]
    if not packages:
        raise LabError(f"apt knows no package behind {_META_PACKAGE}; run `apt-get update` first")
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir) as directory:
        work = Path(directory)
        run_tool(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", packages[0]], timeout_s=300, cwd=work)
        (package,) = work.glob("*.deb")
        run_tool(["dpkg", "-x", package, work / "kernel"], timeout_s=120)
        # Another process may have been first; a directory is not replaced by renaming one over it.
        if not unpacked.is_dir():
            (work / "kernel").rename(unpacked)
