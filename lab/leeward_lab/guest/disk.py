"""The guest's disk: boot code, one FAT partition that SYSLINUX starts the kernel from, one raw partition for data.

Made with mtools and SYSLINUX's own installer on a plain file: no loop device, no mount, no privileges.
"""

import os
import struct
import tempfile
from pathlib import Path

from leeward_lab.guest.commands import LabError, run_tool

SECTOR_BYTES = 512
MIB = 1 << 20
BOOT_START_BYTES = 1 * MIB
BOOT_CODE = Path("/usr/lib/syslinux/mbr/mbr.bin")
DISK_SIGNATURE = 0x4C656577
DATA_PARTITION_BYTES = 1 * MIB

_FAT16 = 0x0E
_NON_FILE_SYSTEM = 0xDA

# Found by trying, under emulation: without these (`quiet` aside) the first tick comes 1.5 to 2 s later. Most of it are
# the crypto API's self-tests and the calibration of clocks; the blacklisted initcalls set up what this guest has no
# use for.
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet panic=5 mitigations=off cryptomgr.notests tsc=reliable no_timer_check nokaslr lsm= "
    "random.trust_cpu=on initcall_blacklist=init_kprobe_trace,load_system_certificate_list,cubictcp_register,"
    "crypto_kdf108_init,init_encrypted,slab_sysfs_init"
)


def write_disk(destination: Path, *, kernel_image: Path, initrd: bytes) -> None:
    """Write a raw disk that BIOS boots. The same input gives the same bytes."""
    content_bytes = kernel_image.stat().st_size + len(initrd)
    boot_mib = content_bytes // MIB + 2
    boot_bytes = boot_mib * MIB
    data_start = BOOT_START_BYTES + boot_bytes
    destination.unlink(missing_ok=True)
    with destination.open("xb") as disk:
        disk.truncate(data_start + DATA_PARTITION_BYTES)
        disk.write(_master_boot_record(boot_bytes=boot_bytes, data_start=data_start))
    _make_boot_partition(destination, boot_bytes, kernel_image=kernel_image, initrd=initrd)


def data_start_bytes(first_sector: bytes) -> int:
    """Where the data partition starts, from a disk's first sector; `LabError` if it is not a disk of ours."""
    if first_sector[510:512] != b"\x55\xaa" or first_sector[440:444] != struct.pack("<I", DISK_SIGNATURE):
        raise LabError("this disk was not made by leeward_lab.guest_image")
    (start,) = struct.unpack_from("<I", first_sector, 446 + 16 + 8)
    return int(start) * SECTOR_BYTES


def _master_boot_record(*, boot_bytes: int, data_start: int) -> bytes:
    if not BOOT_CODE.exists():
        raise LabError(f"{BOOT_CODE} is missing: install syslinux and syslinux-common")
    code = BOOT_CODE.read_bytes().ljust(440, b"\0")
    boot = _partition(0x80, _FAT16, start=BOOT_START_BYTES, size=boot_bytes)
    data = _partition(0x00, _NON_FILE_SYSTEM, start=data_start, size=DATA_PARTITION_BYTES)
    return code + struct.pack("<IH", DISK_SIGNATURE, 0) + (boot + data).ljust(64, b"\0") + b"\x55\xaa"


def _partition(flag: int, kind: int, *, start: int, size: int) -> bytes:
    """A partition entry by block numbers; the obsolete cylinder fields say "look at the block numbers"."""
    no_cylinders = b"\xfe\xff\xff"
    entry = struct.pack("<B3sB3s", flag, no_cylinders, kind, no_cylinders)
    return entry + struct.pack("<II", start // SECTOR_BYTES, size // SECTOR_BYTES)


def _make_boot_partition(disk: Path, boot_bytes: int, *, kernel_image: Path, initrd: bytes) -> None:
    """The partition is made as a file of its own and copied in: mkfs.vfat takes the size of a whole file."""
    configuration = (
        "DEFAULT leeward\nPROMPT 0\nTIMEOUT 0\nLABEL leeward\n"
        f"  KERNEL /vmlinuz\n  INITRD /initrd\n  APPEND {KERNEL_ARGUMENTS}\n"
    )
    with tempfile.TemporaryDirectory(dir=disk.parent) as directory:
        work = Path(directory)
        partition = work / "partition"
        with partition.open("wb") as file:
            file.truncate(boot_bytes)
        hidden = str(BOOT_START_BYTES // SECTOR_BYTES)
        run_tool(
            ["mkfs.vfat", "-F", "16", "-i", f"{DISK_SIGNATURE:08x}", "-h", hidden, "--invariant", partition],
            timeout_s=30,
        )
        (work / "initrd").write_bytes(initrd)
        (work / "vmlinuz").write_bytes(kernel_image.read_bytes())
        (work / "syslinux.cfg").write_text(configuration)
        for name in ("vmlinuz", "initrd", "syslinux.cfg"):
            os.utime(work / name, (0, 0))
            run_tool(["mcopy", "-m", "-i", partition, work / name, f"::/{name}"], timeout_s=30)
        run_tool(["syslinux", "--install", partition], timeout_s=30)
        with disk.open("r+b") as file:
            file.seek(BOOT_START_BYTES)
            file.write(partition.read_bytes())
