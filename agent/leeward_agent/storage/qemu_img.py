"""qemu-img as a process with limits. It only ever opens files whose header has been checked (`image_format`)."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from leeward.agent.types import DiskFormat
from leeward.errors import StorageError

_MAX_MESSAGE_CHARACTERS = 500
_REAP_BOUND_S = 2.0
# On a slow disk qemu-img has 64 threads, and glibc would reserve 64 MiB of address space for each of them to allocate
# from. Beside their stacks of 8 MiB that is more than any sensible limit: it aborts when it cannot start a thread.
_MALLOC_ARENAS = "2"
_NO_SPACE = "No space left on device"  # strerror(ENOSPC) in the locale C.


@dataclass(frozen=True, slots=True)
class QemuImg:
    """How qemu-img is run: the programs, and what one run may use."""

    program: str = "qemu-img"
    prlimit: str = "prlimit"  # util-linux; sets the limits between fork and exec without Python code in the child.
    timeout_s: float = 60.0
    convert_timeout_s: float = 4 * 3600.0  # Of reading and writing a whole disk.
    cpu_s: int = 30
    convert_cpu_s: int = 2 * 3600
    memory_bytes: int = 1024**3
    convert_memory_bytes: int = 2 * 1024**3
    open_files: int = 64

    async def create_overlay(self, path: Path, *, backing: str, backing_format: DiskFormat, size_bytes: int) -> None:
        """Make a qcow2 file over `backing`, which is relative to the directory of `path`.

        Raises StorageError with what qemu-img said, or when it took longer than `timeout_s`; it has been killed then.
        """
        await self._run(
            "create", "-q", "-f", "qcow2", "-F", backing_format.value, "-b", backing, str(path), str(size_bytes)
        )

    async def create(self, path: Path, *, size_bytes: int) -> None:
        """Make an empty qcow2 file. Raises as `create_overlay`."""
        await self._run("create", "-q", "-f", "qcow2", str(path), str(size_bytes))

    async def resize(self, path: Path, *, size_bytes: int) -> None:
        """Make a qcow2 file larger; it refuses to make it smaller. Raises as `create_overlay`."""
        await self._run("resize", "-q", "-f", "qcow2", str(path), str(size_bytes))

    async def convert(self, source: Path, target: Path, *, compress: bool = False) -> None:
        """Copy a qcow2 file and what it is based on to a standalone one, which is on stable storage at the end.

        It refuses while a QEMU has the source open for writing. Raises as `create_overlay`.
        """
        options = ["-c"] if compress else []
        await self._run(
            "convert", "-q", "-f", "qcow2", "-O", "qcow2", "-t", "writeback", *options, str(source), str(target),
            converts=True,
        )  # fmt: skip

    async def _run(self, *arguments: str, converts: bool = False) -> None:
        timeout_s = self.convert_timeout_s if converts else self.timeout_s
        # No working directory is set: changing into a pool that hangs would block this process until the child has
        # reached exec.
        command = [
            self.prlimit,
            f"--as={self.convert_memory_bytes if converts else self.memory_bytes}",
            f"--cpu={self.convert_cpu_s if converts else self.cpu_s}",
            f"--nofile={self.open_files}",
            "--core=0",
            self.program,
            *arguments,
        ]
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "MALLOC_ARENA_MAX": _MALLOC_ARENAS},
            )
        except OSError as error:
            raise StorageError(f"{self.prlimit} cannot be run: {error}") from error
        try:
            async with asyncio.timeout(timeout_s):
                _, stderr = await process.communicate()
        except TimeoutError as error:
            raise StorageError(f"qemu-img {arguments[0]} was not done within {timeout_s:g} s") from error
        finally:
            if process.returncode is None:
                await _kill(process)
        if process.returncode != 0:
            said = stderr.decode(errors="replace").strip()[:_MAX_MESSAGE_CHARACTERS]
            reason = "POOL_FULL" if _NO_SPACE in said else None
            raise StorageError(f"qemu-img {arguments[0]} failed ({process.returncode}): {said}", reason=reason)


async def _kill(process: asyncio.subprocess.Process) -> None:
    process.kill()
    # A process in an uninterruptible wait on a hung file system ends only when that does; it is not waited for.
    await asyncio.wait({asyncio.ensure_future(process.wait())}, timeout=_REAP_BOUND_S)
