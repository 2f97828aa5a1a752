"""What every hypervisor promises of guests that stand still, are written to files, or boot in other ways."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from tests.contract.test_hypervisor import told
from tests.support.hypervisors import (
    UEFI_CODE,
    HypervisorLab,
    LibvirtLab,
    guest_spec,
    libvirt_lab,
    simulated_lab,
    until,
)

from leeward.agent.types import (
    CloudInit,
    DiskFormat,
    Firmware,
    GuestProbe,
    GuestState,
    MachineType,
    ProbeKind,
    RescueImage,
    StopCause,
)
from leeward.errors import HypervisorError
from leeward_agent.ports import Hypervisor
from leeward_lab.guest.record import ticks_in

_WAIT_S = 20.0


@pytest.fixture(params=["simulated", pytest.param("libvirt", marks=pytest.mark.hosts)])
async def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HypervisorLab]:
    directory = tmp_path_factory.mktemp("hv")
    make = simulated_lab if request.param == "simulated" else libvirt_lab
    async with make(directory) as made:
        yield made


@pytest.fixture
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LibvirtLab]:
    async with libvirt_lab(tmp_path_factory.mktemp("hv")) as made:
        yield made


async def suspend(lab: HypervisorLab, hypervisor: Hypervisor) -> None:
    await hypervisor.suspend(guest_spec(), to=lab.memory("one"))


async def wake(lab: HypervisorLab, hypervisor: Hypervisor, *, run_epoch: int = 1) -> None:
    spec = guest_spec(run_epoch=run_epoch)
    await hypervisor.wake(spec, memory=lab.memory("one"), disks=lab.disks(spec), console=lab.console_files("one"))


async def says(lab: HypervisorLab, text: str, *, uid: str = "one", within_s: float = 40) -> None:
    async def said() -> bool:
        return text in lab.console(uid)

    await until(said, within_s=within_s, what=f"{text!r} on the console of {uid}")


async def test_host_says_which_processors_guests_can_have(lab: HypervisorLab) -> None:
    cpu = (await lab.a.capacity()).cpu

    assert cpu.model
    assert len(cpu.usable_models) >= 2
    assert list(cpu.usable_models) == sorted(cpu.usable_models)


async def test_halted_guest_stays_in_memory_and_goes_on(lab: HypervisorLab) -> None:
    await lab.boot(lab.a, guest_spec())

    await lab.a.pause("one")
    await lab.a.pause("one")

    assert (await lab.a.get_guest("one")).state is GuestState.PAUSED
    assert await lab.a.paused_by_io_error() == (), "what was asked for is not undone by itself"
    await lab.a.resume("one")
    await lab.ticks_on("one")
    assert lab.boots("one") == [1]


async def test_guest_can_be_started_halted(lab: HypervisorLab) -> None:
    await lab.start(lab.a, guest_spec(), paused=True)

    assert (await lab.a.get_guest("one")).state is GuestState.PAUSED
    await lab.a.resume("one")
    await lab.ticks_on("one")


async def test_guest_that_is_interrupted_says_so(lab: HypervisorLab) -> None:
    await lab.boot(lab.a, guest_spec())

    await lab.a.inject_nmi("one")

    await says(lab, "NMI received")
    await lab.ticks_on("one")


async def test_suspended_guest_wakes_on_another_host_as_if_nothing_had_been(lab: HypervisorLab) -> None:
    await lab.boot(lab.a, guest_spec())

    await suspend(lab, lab.a)

    stopped = await lab.a.get_guest("one")
    assert (stopped.state, stopped.stop_cause) == (GuestState.STOPPED, StopCause.REQUESTED)
    before = ticks_in(lab.console("one"))[-1]
    await lab.a.undefine("one")
    await wake(lab, lab.b, run_epoch=2)
    woken = await lab.b.get_guest("one")
    assert (woken.state, woken.run_epoch, woken.migrating) == (GuestState.PAUSED, 2, False)
    lab.memory("one").unlink()
    await lab.b.set_run_epoch("one", 3)
    await lab.b.resume("one")
    await lab.ticks_on("one")
    after = ticks_in(lab.console("one"))[-1]
    assert after.boot == before.boot == 1, "it woke, it did not boot"
    assert after.line > before.line
    # What is defined on this host is complete: it boots from there, too.
    await lab.b.kill("one")
    await lab.boot(lab.b, guest_spec(run_epoch=4))
    assert lab.boots("one") == [1, 2]


async def test_suspending_that_is_given_up_leaves_the_guest_running_or_suspended(lab: HypervisorLab) -> None:
    await lab.boot(lab.a, guest_spec())
    suspending = asyncio.create_task(suspend(lab, lab.a))
    await lab.becomes(lab.a, GuestState.PAUSED)

    suspending.cancel()
    await asyncio.wait((suspending,), timeout=_WAIT_S)

    if (await lab.a.get_guest("one")).state is GuestState.STOPPED:
        assert lab.memory("one").exists(), "too late: its memory is all there"
        await wake(lab, lab.a)
        await lab.a.resume("one")
    else:
        await lab.becomes(lab.a, GuestState.RUNNING)
        assert not lab.memory("one").exists()
    await lab.ticks_on("one")
    assert lab.boots("one") == [1]


async def test_guest_is_not_woken_from_what_is_no_memory(lab: HypervisorLab) -> None:
    await lab.start(lab.a, guest_spec())
    await lab.a.kill("one")
    lab.memory("one").write_bytes(b"not a memory")

    with pytest.raises(HypervisorError, match="wake guest one"):
        await wake(lab, lab.a)
    with pytest.raises(HypervisorError, match="wake guest one"):
        await wake(lab, lab.b)

    assert (await lab.a.get_guest("one")).state is GuestState.STOPPED
    assert (await lab.b.get_guest("one")).state is GuestState.ABSENT
    assert lab.memory("one").exists()


async def test_backup_is_of_one_moment_and_the_guest_writes_on(lab: HypervisorLab) -> None:
    await lab.boot(lab.a, guest_spec())
    await lab.has_agent("one")
    copy = lab.directory / "pool" / "copy.qcow2"

    async with told(lab.a) as statuses:
        quiesced = await lab.a.backup(guest_spec(), disks=lab.disks(guest_spec()), to=copy)
        await lab.ticks_on("one")

    assert quiesced
    assert {status.state for status in statuses} <= {GuestState.RUNNING}, "it is never halted"
    # It ticks once a second, and later on a busy machine.
    ticks = ticks_in(lab.console("one"))
    assert max(after.uptime_s - before.uptime_s for before, after in pairwise(ticks)) < 5.0
    lab.check_copy(copy, boots=1)


async def test_backup_of_a_halted_guest_is_made_without_its_help(lab: HypervisorLab) -> None:
    await lab.boot(lab.a, guest_spec())
    await lab.a.pause("one")
    copy = lab.directory / "pool" / "copy.qcow2"

    assert not await lab.a.backup(guest_spec(), disks=lab.disks(guest_spec()), to=copy)

    assert (await lab.a.get_guest("one")).state is GuestState.PAUSED
    lab.check_copy(copy, boots=1)
    await lab.a.kill("one")
    with pytest.raises(HypervisorError):
        await lab.a.backup(guest_spec(), disks=lab.disks(guest_spec()), to=lab.directory / "pool" / "other.qcow2")


async def test_rescue_boots_another_disk_and_leaves_the_own_one_as_it_is(lab: HypervisorLab) -> None:
    await lab.boot(lab.a, guest_spec())
    await lab.a.kill("one")
    own = lab.record(lab.disk("one"))
    spec = replace(guest_spec(), rescue=RescueImage("0" * 64, DiskFormat.QCOW2))
    image = lab.disk("image")
    lab.make_disk("image")
    lab.make_file(lab.directory / "pool" / "one-rescue.qcow2", like=image)

    await lab.boot(lab.a, spec)

    await lab.shows_disk("one", "vdb", boots=own[0])
    await lab.a.kill("one")
    assert lab.record(lab.disk("one")) == own
    assert lab.record(lab.directory / "pool" / "one-rescue.qcow2")[0] == 1
    await lab.boot(lab.a, guest_spec())
    assert lab.boots("one")[-1] == own[0] + 1


async def test_console_can_be_written_to_and_its_log_goes_on(lab: HypervisorLab) -> None:
    await lab.boot(lab.a, guest_spec())
    typed: asyncio.Queue[bytes] = asyncio.Queue()

    async def keyboard() -> AsyncIterator[bytes]:
        while True:
            yield await typed.get()

    shown = b""
    console = lab.a.attach_console("one", console=lab.console_files("one"), input=keyboard())
    async with asyncio.timeout(_WAIT_S), aclosing(console) as output:
        assert await anext(output) == b""
        typed.put_nowait(b"echo here-I-am\n")
        while b"\nhere-I-am" not in shown.replace(b"\r", b""):
            shown += await anext(output)
        killing = asyncio.create_task(lab.a.kill("one"))
        async for data in output:
            shown += data
        await killing
    assert "here-I-am" in lab.console("one")
    await lab.boot(lab.a, guest_spec())
    async with (
        asyncio.timeout(_WAIT_S),
        aclosing(lab.a.attach_console("one", console=lab.console_files("one"), input=keyboard())) as output,
    ):
        assert await anext(output) == b""


async def test_a_probe_tells_whether_a_guest_answers(lab: HypervisorLab) -> None:
    await lab.boot(lab.a, guest_spec())

    async def answers(probe: GuestProbe) -> bool:
        return await lab.a.probe("one", probe) == ""

    await until(lambda: answers(GuestProbe(ProbeKind.GUEST_AGENT)), within_s=40, what="its agent answers")
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = GuestProbe(ProbeKind.TCP_PORT, *server.sockets[0].getsockname())
        await until(lambda: answers(port), within_s=5, what="its port answers")


@pytest.mark.hosts
async def test_a_probe_tells_why_a_guest_does_not_answer(real: LibvirtLab) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = GuestProbe(ProbeKind.TCP_PORT, *server.sockets[0].getsockname())
    server.close()
    await server.wait_closed()
    await real.start(real.a, guest_spec())

    assert "not connected" in await real.a.probe("one", GuestProbe(ProbeKind.GUEST_AGENT))
    assert "refused" in await real.a.probe("one", port)


@pytest.mark.hosts
async def test_guest_sees_what_its_spec_asks_for(real: LibvirtLab) -> None:
    spec = replace(
        guest_spec(),
        machine=MachineType.PC,
        cpu_model="Westmere",
        data_disks_gib=(1, 1),
        cloud_init=CloudInit(user_data=b"#cloud-config"),
        vcpus=2,
    )
    for disk in real.disks(spec).data:
        real.make_file(disk)
    real.make_seed(spec, "#cloud-config marker-of-the-seed")

    await real.boot(real.a, spec)

    for text in ("disk vdb sectors=16384", "disk vdc sectors=16384", "marker-of-the-seed", "cpus=2", "mac=52:54"):
        await says(real, text)
    definition = await real.a.definition("one")
    for text in ("Westmere", "pc-i440fx", "org.qemu.guest_agent.0", "i6300esb", "/dev/urandom"):
        assert text in definition


@pytest.mark.hosts
@pytest.mark.skipif(not UEFI_CODE.exists(), reason="needs OVMF")
async def test_guest_with_uefi_keeps_its_variables(real: LibvirtLab) -> None:
    spec = replace(guest_spec(), firmware=Firmware.UEFI)
    variables = real.disks(spec).firmware_vars
    assert variables is not None
    shutil.copy(Path("/usr/share/OVMF/OVMF_VARS_4M.fd"), variables)
    untouched = variables.read_bytes()

    await real.start(real.a, spec)

    await says(real, "BdsDxe", within_s=60)
    await real.a.kill("one")
    await real.a.undefine("one")
    assert variables.read_bytes() != untouched, "the firmware has written its boot order"
