"""What an uploaded image's header may say. The files are made by qemu-img where it can make them."""

import contextlib
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leeward.agent.types import DiskFormat
from leeward.errors import ImageRefused
from leeward_agent.storage.image_format import HEAD_BYTES, check_image

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")


def check(data: bytes, declared: DiskFormat) -> int:
    return check_image(head=data[:HEAD_BYTES], declared=declared, size_bytes=len(data))


def made_by_qemu_img(folder: Path, *arguments: str, size: str = "8M") -> bytes:
    path = folder / "image"
    subprocess.run(["qemu-img", "create", "-q", *arguments, str(path), size], check=True, timeout=30)
    return path.read_bytes()


@pytest.fixture
def qcow2(tmp_path: Path) -> bytes:
    return made_by_qemu_img(tmp_path, "-f", "qcow2")


@needs_qemu_img
@pytest.mark.parametrize(
    "options",
    ["compat=0.10", "compat=1.1", "compression_type=zstd", "extended_l2=on", "cluster_size=512", "lazy_refcounts=on"],
)
def test_ordinary_qcow2_is_accepted_with_its_virtual_size(tmp_path: Path, options: str) -> None:
    assert check(made_by_qemu_img(tmp_path, "-f", "qcow2", "-o", options), DiskFormat.QCOW2) == 8 * 1024**2


@needs_qemu_img
def test_qcow2_with_backing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(bytes(1024**2))
    for compat in ("0.10", "1.1"):
        data = made_by_qemu_img(tmp_path, "-f", "qcow2", "-o", f"compat={compat}", "-b", "base", "-F", "raw")
        with pytest.raises(ImageRefused, match="backing file"):
            check(data, DiskFormat.QCOW2)


@needs_qemu_img
def test_qcow2_with_data_file_is_refused(tmp_path: Path) -> None:
    data = made_by_qemu_img(tmp_path, "-f", "qcow2", "-o", f"data_file={tmp_path}/data")
    with pytest.raises(ImageRefused, match="data in another file"):
        check(data, DiskFormat.QCOW2)
    # The feature bit taken back, the header extension still names the file.
    without_bit = data[:72] + bytes(8) + data[80:]
    with pytest.raises(ImageRefused, match="names a data file"):
        check(without_bit, DiskFormat.QCOW2)


@needs_qemu_img
def test_encrypted_qcow2_is_refused(tmp_path: Path) -> None:
    secret = ("--object", "secret,id=s,data=abc123")
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    data = made_by_qemu_img(tmp_path, *secret, "-f", "qcow2", "-o", options)
    with pytest.raises(ImageRefused, match="encrypted"):
        check(data, DiskFormat.QCOW2)


@needs_qemu_img
@pytest.mark.parametrize(
    ("bit", "message"), [(0, "not closed properly"), (1, "marked corrupt"), (5, "unknown"), (63, "unknown")]
)
def test_incompatible_features_are_refused(qcow2: bytes, bit: int, message: str) -> None:
    features = struct.unpack(">Q", qcow2[72:80])[0] | 1 << bit
    with pytest.raises(ImageRefused, match=message):
        check(qcow2[:72] + struct.pack(">Q", features) + qcow2[80:], DiskFormat.QCOW2)


@needs_qemu_img
@pytest.mark.parametrize(
    ("offset", "field", "message"),
    [
        (4, ">I1", "version 1"),
        (4, ">I4", "version 4"),
        (20, ">I8", "cluster_bits"),
        (20, ">I40", "cluster_bits"),
        (24, ">Q0", "virtual size"),
        (24, ">Q18446744073709551615", "virtual size"),
        (36, ">I4294967295", "L1 table"),
        (40, ">Q1152921504606846976", "L1 table"),
        (48, ">Q65537", "refcount table"),
        (56, ">I4294967295", "refcount table"),
        (60, ">I4294967295", "snapshots"),
        (96, ">I7", "refcount_order"),
        (100, ">I4294967288", "header claims"),
        (100, ">I80", "header claims"),
    ],
)
def test_hostile_header_fields_are_refused(qcow2: bytes, offset: int, field: str, message: str) -> None:
    value = struct.pack(field[:2], int(field[2:]))
    with pytest.raises(ImageRefused, match=message):
        check(qcow2[:offset] + value + qcow2[offset + len(value) :], DiskFormat.QCOW2)


@needs_qemu_img
@pytest.mark.parametrize("other", ["qcow", "qcow2", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels"])
def test_other_formats_are_refused_as_raw_and_as_qcow2(tmp_path: Path, other: str) -> None:
    data = made_by_qemu_img(tmp_path, "-f", other)
    data += bytes(-len(data) % 512)
    with pytest.raises(ImageRefused, match="declared as raw, but the bytes are those of a"):
        check(data, DiskFormat.RAW)
    if other != "qcow2":
        with pytest.raises(ImageRefused, match="qcow"):
            check(data, DiskFormat.QCOW2)


@pytest.mark.parametrize(
    "beginning",
    [
        b"LUKS\xba\xbe\x00\x02",
        b"# Disk DescriptorFile\nversion=1\nCID=fffffffe\n",
        b"\n#x\nversion=3\n",
        b"Bochs Virtual HD Image",
    ],
)
def test_more_that_qemu_would_take_for_a_container_is_refused_as_raw(beginning: bytes) -> None:
    with pytest.raises(ImageRefused, match="declared as raw"):
        check(beginning.ljust(1024, b"\0"), DiskFormat.RAW)


@pytest.mark.parametrize(("size", "accepted"), [(0, False), (511, False), (512, True), (513, False), (1024**2, True)])
def test_a_raw_image_consists_of_whole_sectors(size: int, accepted: bool) -> None:
    if accepted:
        assert check(bytes(size), DiskFormat.RAW) == size
    else:
        with pytest.raises(ImageRefused, match="multiple of 512"):
            check(bytes(size), DiskFormat.RAW)


@given(st.binary(max_size=300))
def test_any_bytes_are_judged_and_never_crash(tail: bytes) -> None:
    for declared in DiskFormat:
        for beginning in (b"", b"QFI\xfb\0\0\0\2", b"QFI\xfb\0\0\0\3"):
            with contextlib.suppress(ImageRefused):
                assert check(beginning + tail, declared) > 0
