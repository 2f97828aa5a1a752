"""Whether KVM works here, found by running something.

`/dev/kvm` may open, and even run a few instructions, and still be unable to boot a guest: seen on a nested
hypervisor that emulates most instructions but not a return from interrupt in protected mode. So the probe is a
64 KiB firmware that enters protected mode, executes `iret`, and ends QEMU through its debug-exit device.
"""

import asyncio
import os
import struct
import tempfile
from pathlib import Path

_EXIT_PORT = 0x501
_EXIT_VALUE = 0x10
# The device ends QEMU with the value written, doubled, plus one (hw/misc/debugexit.c of QEMU).
_EXIT_STATUS = _EXIT_VALUE * 2 + 1
_ROM_BYTES = 1 << 16
_ROM_ADDRESS = 0xF0000
_GDT_AT = 0x40
_GDT_POINTER_AT = 0x60
_RESET_VECTOR_AT = 0xFFF0


async def kvm_usable(*, timeout_s: float = 3.0, emulator: str = "qemu-system-x86_64") -> bool:
    """True when a guest can run under KVM here. Takes about 0.1 s, and at most `timeout_s`."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    return await run_probe(accelerator="kvm", timeout_s=timeout_s, emulator=emulator)


async def run_probe(*, accelerator: str, timeout_s: float, emulator: str = "qemu-system-x86_64") -> bool:
    """True when the probe runs to its end under the given accelerator within `timeout_s`."""
    with tempfile.TemporaryDirectory() as directory:
        firmware = Path(directory) / "probe.bin"
        firmware.write_bytes(probe_firmware())
        process = await asyncio.create_subprocess_exec(
            emulator, "-accel", accelerator, "-machine", "pc", "-m", "16", "-nodefaults", "-display", "none",
            "-bios", str(firmware), "-device", f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=2",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(timeout_s):
                return not await _complains(process) and await process.wait() == _EXIT_STATUS
        except TimeoutError:
            return False
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _complains(process: asyncio.subprocess.Process) -> bool:
    """True as soon as KVM reports an instruction that it cannot do: QEMU pauses the guest then, and stays."""
    assert process.stderr is not None
    async for line in process.stderr:
        if b"KVM internal error" in line:
            return True
    return False


def probe_firmware() -> bytes:
    """The firmware, hand-assembled: 16-bit start, then 32-bit code with flat segments."""
    load_gdt = b"\x2e\x0f\x01\x16" + struct.pack("<H", _GDT_POINTER_AT)  # lgdt cs:[pointer]
    enter = load_gdt + bytes.fromhex("0f20c0 0c01 0f22c0")  # mov eax,cr0; or al,1; mov cr0,eax
    body_at = len(enter) + 8
    enter += b"\x66\xea" + struct.pack("<IH", _ROM_ADDRESS + body_at, 8)  # jmp far 8:body
    # mov ax,16; mov ss,ax; mov esp,7000h; pushfd; push 8; push <address after iretd>; iretd
    body = bytes.fromhex("66b81000 8ed0 bc00700000 9c 6a08 68")
    body += struct.pack("<I", _ROM_ADDRESS + body_at + len(body) + 5) + b"\xcf"
    # mov dx,port; mov al,value; out dx,al; hlt; jmp back to hlt
    body += b"\x66\xba" + struct.pack("<H", _EXIT_PORT) + bytes((0xB0, _EXIT_VALUE)) + bytes.fromhex("ee f4 ebfd")

    rom = bytearray(b"\xf4" * _ROM_BYTES)
    rom[: len(enter) + len(body)] = enter + body
    # Null, code and data descriptors: base 0, limit 4 GiB, already marked accessed because ROM cannot be written.
    rom[_GDT_AT : _GDT_AT + 24] = bytes(8) + bytes.fromhex("ffff0000009bcf00 ffff00000093cf00")
    rom[_GDT_POINTER_AT : _GDT_POINTER_AT + 6] = struct.pack("<HI", 23, _ROM_ADDRESS + _GDT_AT)
    rom[_RESET_VECTOR_AT : _RESET_VECTOR_AT + 3] = b"\xe9" + struct.pack("<H", _ROM_BYTES - _RESET_VECTOR_AT - 3)
    return bytes(rom)
