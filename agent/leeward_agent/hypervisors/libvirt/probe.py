"""Whether KVM can be used, found by running something under it.

`/dev/kvm` may open, and even execute a few instructions, and still be of no use: nested in some virtual machines it is
slower than translation, and ends with an internal error at the first `iret` in protected mode, before any guest has
booted. So QEMU's firmware is run and a boot sector that switches to protected mode and takes an interrupt.
"""

import asyncio
import tempfile
from pathlib import Path

from leeward.clock import Clock
from leeward.errors import HypervisorError
from leeward_agent.hypervisors.libvirt.domain_xml import Accelerator

QEMU = "qemu-system-x86_64"
TCG_TIMEOUT_S = 15.0
# KVM takes a fraction of TCG's time; one that takes longer than this many times is no gain. On a loaded host both
# measurements grow together.
KVM_TIMEOUT_MIN_S = 3.0
KVM_TIMEOUT_FACTOR = 10

_EXIT_PORT = 0x501
_EXIT_VALUE = 0x21
# QEMU's debug-exit device ends it with (value << 1) | 1.
_EXPECTED_STATUS = (_EXIT_VALUE << 1) | 1

# Loaded by the firmware at 0x7c00, in 16-bit mode.
_BOOT_SECTOR = bytes.fromhex(
    "fa 31c0 8ed8"  # cli; ds = 0
    "0f0116587c 0f011e5e7c"  # load the descriptor tables below
    "0f20c0 0c01 0f22c0"  # switch on protected mode
    "ea1c7c0800"  # jump to the next instruction as 32-bit code
    "66b81000 8ed8 8ed0"  # ds = ss = the data segment
    "bc00700000"  # esp = 0x7000
    "cd00"  # take interrupt 0, whose handler returns
    "66ba0105 b021 ee f4"  # write the value to the exit port; halt
    "cf"  # the handler: iret
    "8d742600"  # padding
    "0000000000000000 ffff0000009acf00 ffff00000092cf00"  # segments: null, code, data
    "337c0800008e0000"  # interrupt 0
    "1700387c0000 0700507c0000"  # sizes and addresses of the two tables
).ljust(510, b"\0") + bytes.fromhex("55aa")


async def find_accelerator(*, clock: Clock, qemu: str = QEMU) -> Accelerator:
    """KVM where it really runs guests, else TCG. Raises HypervisorError when QEMU runs nothing even with TCG."""
    started_s = clock.monotonic_s()
    if not await can_execute(Accelerator.TCG, qemu=qemu, timeout_s=TCG_TIMEOUT_S):
        raise HypervisorError(f"{qemu} does not run a boot sector within {TCG_TIMEOUT_S:g} s")
    tcg_s = clock.monotonic_s() - started_s
    timeout_s = max(KVM_TIMEOUT_MIN_S, KVM_TIMEOUT_FACTOR * tcg_s)
    usable = await can_execute(Accelerator.KVM, qemu=qemu, timeout_s=timeout_s)
    return Accelerator.KVM if usable else Accelerator.TCG


async def can_execute(accelerator: Accelerator, *, qemu: str = QEMU, timeout_s: float) -> bool:
    """Whether QEMU runs its firmware and a boot sector with this accelerator within `timeout_s`."""
    with tempfile.TemporaryDirectory(prefix="leeward-probe-") as directory:
        disk = Path(directory) / "disk"
        disk.write_bytes(_BOOT_SECTOR)
        try:
            process = await asyncio.create_subprocess_exec(
                qemu,
                *_arguments(accelerator, disk),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            raise HypervisorError(f"cannot run {qemu}: {error}") from error
        try:
            async with asyncio.timeout(timeout_s):
                return await process.wait() == _EXPECTED_STATUS
        except TimeoutError:
            return False
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def _arguments(accelerator: Accelerator, disk: Path) -> list[str]:
    name = "kvm" if accelerator is Accelerator.KVM else "tcg"
    machine = ["-accel", name, "-machine", "pc", "-m", "16", "-nodefaults", "-no-user-config", "-display", "none"]
    drive = ["-drive", f"file={disk},format=raw,if=ide"]
    return [*machine, *drive, "-device", f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=4"]
