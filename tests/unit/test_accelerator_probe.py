"""Whether KVM is used is decided by what QEMU did, and in bounded time."""

import shutil
from pathlib import Path

import pytest

from leeward.clock import SystemClock
from leeward.errors import HypervisorError
from leeward_agent.hypervisors.libvirt import probe
from leeward_agent.hypervisors.libvirt.domain_xml import Accelerator

RAN = 67  # What QEMU's debug-exit device makes of the value that the boot sector writes.


def fake_qemu(directory: Path, *, tcg: str, kvm: str) -> str:
    path = directory / "qemu"
    path.write_text(f'#!/bin/sh\ncase "$2" in tcg) {tcg};; kvm) {kvm};; esac\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("kvm", "expected"),
    [
        (f"exit {RAN}", Accelerator.KVM),
        ("exit 1", Accelerator.TCG),
        ("exit 0", Accelerator.TCG),
        ("exec sleep 60", Accelerator.TCG),
    ],
    ids=["runs", "cannot be opened", "ended without running", "hangs"],
)
async def test_kvm_is_used_only_where_it_ran_something(
    kvm: str, expected: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "KVM_TIMEOUT_MIN_S", 0.3)
    qemu = fake_qemu(tmp_path, tcg=f"exit {RAN}", kvm=kvm)

    assert await probe.find_accelerator(clock=SystemClock(), qemu=qemu) is expected


async def test_host_without_working_qemu_is_an_error(tmp_path: Path) -> None:
    broken = fake_qemu(tmp_path, tcg="exit 1", kvm="exit 1")

    with pytest.raises(HypervisorError, match="does not run a boot sector"):
        await probe.find_accelerator(clock=SystemClock(), qemu=broken)
    with pytest.raises(HypervisorError, match="cannot run"):
        await probe.find_accelerator(clock=SystemClock(), qemu=str(tmp_path / "nothing"))


async def test_boot_sector_runs_in_the_real_qemu() -> None:
    if shutil.which(probe.QEMU) is None:
        pytest.skip(f"needs {probe.QEMU}")

    assert await probe.can_execute(Accelerator.TCG, timeout_s=probe.TCG_TIMEOUT_S)
