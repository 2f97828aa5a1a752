"""The laboratory's guest image, ready to boot: `python -m leeward_lab.guest_image DEST`.

A disk of about 20 MiB that SeaBIOS boots and that ticks once a second, on its console and, before that, on its disk
(`guest/init.sh` says exactly what it promises). `leeward_lab.guest.record` reads both back.
"""

import argparse
import hashlib
import os
import sys
from pathlib import Path

from leeward_lab.guest.commands import LabError, run_tool
from leeward_lab.guest.disk import write_disk
from leeward_lab.guest.initrd import BUSYBOX, CHURN_SCRIPT, INIT_SCRIPT, build_initrd
from leeward_lab.guest.kernel import fetch_kernel


def default_cache_dir() -> Path:
    """Where the kernel and finished images are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "leeward-lab"


def build_guest_image(destination: Path, *, cache_dir: Path, ballast_mib: int = 0, churn_mib: int = 0) -> Path:
    """Write the image to `destination` and return that: qcow2 if so named, else raw.

    The guest fills `ballast_mib` of its memory with data before its first tick, for migrations with something to carry,
    and writes `churn_mib` of it over and over, for migrations that cannot keep up.

    The same sources and tools give the same bytes, so the content digest is stable. The first build downloads the
    kernel into `cache_dir` (27 MB through apt); later ones copy the finished image from there in an instant.
    Raises `LabError` when a tool is missing or fails.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    raw = _built(cache_dir, ballast_mib=ballast_mib, churn_mib=churn_mib)
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".{destination.name}.{os.getpid()}")
    image_format = "qcow2" if destination.suffix == ".qcow2" else "raw"
    try:
        run_tool(["qemu-img", "convert", "-f", "raw", "-O", image_format, raw, partial], timeout_s=60)
        partial.replace(destination)
    finally:
        partial.unlink(missing_ok=True)
    return destination


def _built(cache_dir: Path, *, ballast_mib: int, churn_mib: int) -> Path:
    """The finished raw image of these very sources, from the cache or newly made."""
    kernel = fetch_kernel(cache_dir)
    key = hashlib.sha256(f"{kernel.release} {ballast_mib} {churn_mib}".encode())
    for source in (*sorted(INIT_SCRIPT.parent.glob("*.py")), INIT_SCRIPT, CHURN_SCRIPT, BUSYBOX):
        key.update(source.read_bytes())
    raw = cache_dir / f"guest-{key.hexdigest()[:16]}.raw"
    if not raw.exists():
        partial = cache_dir / f".guest-{os.getpid()}.raw"
        try:
            initrd = build_initrd(kernel, ballast_mib=ballast_mib, churn_mib=churn_mib)
            write_disk(partial, kernel_image=kernel.image, initrd=initrd)
            partial.replace(raw)
        finally:
            partial.unlink(missing_ok=True)
    return raw


def main() -> None:
    """Build the image that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m leeward_lab.guest_image", description="Build the guest image.")
    parser.add_argument("destination", type=Path, help="file to write; *.qcow2 gives qcow2, anything else raw")
    parser.add_argument("--cache", type=Path, default=default_cache_dir(), help="default: %(default)s")
    options = parser.parse_args()
    try:
        written = build_guest_image(options.destination, cache_dir=options.cache)
    except LabError as error:
        sys.exit(f"leeward_lab.guest_image: {error.message}")
    sys.stdout.write(f"{written}: {written.stat().st_size / (1 << 20):.1f} MiB\n")


if __name__ == "__main__":
    main()
