"""The XML of a guest's domain, as libvirt reads it."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leeward.agent.types import DiskFormat, Firmware, GuestSpec, Nic
from leeward.errors import HypervisorError
from leeward_agent.domain.guest_files import ConsoleFiles, GuestDisks
from leeward_agent.hypervisors.libvirt.cpu import parse_cpu
from leeward_agent.hypervisors.libvirt.domain_xml import (
    METADATA_NAMESPACE,
    Accelerator,
    GuestMetadata,
    Platform,
    domain_name,
    domain_uuid,
    domain_xml,
    metadata_for_libvirt,
    metadata_of,
    parse_metadata,
    uid_of_domain_name,
    with_files,
    with_metadata,
)

SPEC = GuestSpec(
    uid="abc234",
    name="projects/p/instances/web",
    vcpus=2,
    memory_mib=512,
    disk_gib=10,
    pool_id="pool",
    image_digest="0" * 64,
    image_format=DiskFormat.QCOW2,
    run_epoch=7,
    nics=(Nic(mac="52:54:00:00:00:01"), Nic(mac="52:54:00:00:00:02", bridge="br0")),
)
DISKS = GuestDisks(root=Path("/pool/a & b.qcow2"))
CONSOLE = ConsoleFiles(log=Path("/console.log"), socket=Path("/console.sock"))
# What XML can hold at all; other characters are refused long before a guest is started.
NAMES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xD7FF), min_size=1)


def xml_of(spec: GuestSpec = SPEC, *, accelerator: Accelerator = Accelerator.TCG) -> str:
    return domain_xml(spec, disks=DISKS, console=CONSOLE, platform=Platform(accelerator, Path("/ovmf/code.fd")))


def leeward_metadata(xml: str) -> GuestMetadata:
    element = ET.fromstring(xml).find(f"metadata/{{{METADATA_NAMESPACE}}}guest")
    assert element is not None
    return parse_metadata(ET.tostring(element, encoding="unicode"))


@given(name=NAMES)
def test_no_name_becomes_markup(name: str) -> None:
    domain = ET.fromstring(xml_of(replace(SPEC, name=name)))

    title = domain.findtext("title")
    assert title is not None
    assert title.split() == name.split()
    assert [child.tag for child in domain] == [child.tag for child in ET.fromstring(xml_of())]


def test_disk_survives_migration_and_storage_trouble() -> None:
    driver = ET.fromstring(xml_of()).find("devices/disk/driver")

    assert driver is not None
    # No bytes of the disk may stay in one host's page cache when the guest moves on.
    assert driver.get("cache") == "none"
    assert (driver.get("error_policy"), driver.get("rerror_policy")) == ("stop", "stop")


def test_guest_that_crashes_is_not_restarted_behind_the_controllers_back() -> None:
    domain = ET.fromstring(xml_of())

    assert [domain.findtext(tag) for tag in ("on_poweroff", "on_reboot", "on_crash")] == [
        "destroy",
        "restart",
        "destroy",
    ]


def test_processor_is_the_hosts_own_only_with_kvm() -> None:
    emulated, real = (ET.fromstring(xml_of(accelerator=each)) for each in (Accelerator.TCG, Accelerator.KVM))

    assert (emulated.get("type"), emulated.findtext("cpu/model")) == ("qemu", "Nehalem")
    assert (real.get("type"), real.find("cpu[@mode='host-model']") is not None) == ("kvm", True)


def test_networks() -> None:
    user, bridge = ET.fromstring(xml_of()).findall("devices/interface")

    assert user.get("type") == "user"
    assert bridge.get("type") == "bridge"
    assert [each.get("bridge") for each in bridge.findall("source")] == ["br0"]
    assert [each.get("address") for each in bridge.findall("mac")] == ["52:54:00:00:00:02"]


def test_domain_is_the_same_on_every_host_and_known_by_its_name() -> None:
    assert domain_uuid("abc234") == domain_uuid("abc234") != domain_uuid("abc235")
    assert ET.fromstring(xml_of()).findtext("uuid") == str(domain_uuid("abc234"))
    assert uid_of_domain_name(domain_name("abc234")) == "abc234"
    assert uid_of_domain_name("somebody-elses") is None


@given(name=NAMES, run_epoch=st.integers(min_value=0, max_value=2**63))
def test_metadata_is_read_back(name: str, run_epoch: int) -> None:
    spec = replace(SPEC, name=name, run_epoch=run_epoch)

    assert leeward_metadata(xml_of(spec)) == metadata_of(spec)
    assert parse_metadata(metadata_for_libvirt(metadata_of(spec))) == metadata_of(spec)


def test_destination_of_a_migration_gets_its_own_epoch_and_other_metadata_stays() -> None:
    foreign = '<metadata><other:thing xmlns:other="urn:other">kept</other:thing>'
    xml = xml_of().replace("<metadata>", foreign)

    moved = with_metadata(xml, metadata_of(replace(SPEC, run_epoch=8)))

    assert leeward_metadata(moved).run_epoch == 8
    assert moved.count("run_epoch=") == 1
    assert ET.fromstring(moved).findtext("metadata/{urn:other}thing") == "kept"


@pytest.mark.parametrize("xml", ["", "<guest/>", '<guest uid="a" name="b" run_epoch="x"/>', "<other/>"])
def test_metadata_that_is_not_ours_is_an_error(xml: str) -> None:
    with pytest.raises(HypervisorError, match="domain metadata"):
        parse_metadata(xml)


def files_of(xml: str) -> tuple[list[str | None], str | None, str | None, str | None]:
    """Disks in order, firmware variables, console socket and log."""
    domain = ET.fromstring(xml)
    sources = [source.get("file") for source in domain.findall("devices/disk/source")]
    (socket,) = {source.get("path") for source in domain.findall("devices/serial/source")}
    (log,) = {each.get("file") for each in domain.findall("devices/serial/log")}
    return sources, domain.findtext("os/nvram"), socket, log


def all_disks(root: str) -> GuestDisks:
    folder = Path(root)
    return GuestDisks(
        root=folder / "root.qcow2",
        data=(folder / "data-1.qcow2", folder / "data-2.qcow2"),
        seed=folder / "seed.iso",
        rescue=folder / "rescue.qcow2",
        firmware_vars=folder / "vars.fd",
    )


def test_rescue_image_boots_first_and_the_seed_comes_last_and_is_read_only() -> None:
    spec = replace(SPEC, firmware=Firmware.UEFI)
    xml = domain_xml(spec, disks=all_disks("/a"), console=CONSOLE, platform=Platform(Accelerator.TCG, Path("/code.fd")))

    disks = ET.fromstring(xml).findall("devices/disk")
    assert files_of(xml)[0] == [f"/a/{name}" for name in ALL_NAMES]
    assert [target.get("dev") for disk in disks for target in disk.findall("target")] == [f"vd{x}" for x in "abcde"]
    assert [disk.find("readonly") is not None for disk in disks] == [False] * 4 + [True]
    assert [driver.get("type") for disk in disks for driver in disk.findall("driver")] == ["qcow2"] * 4 + ["raw"]


ALL_NAMES = ("rescue.qcow2", "root.qcow2", "data-1.qcow2", "data-2.qcow2", "seed.iso")


def test_what_was_saved_on_one_host_has_its_files_on_another() -> None:
    spec = replace(SPEC, firmware=Firmware.UEFI)
    saved = domain_xml(
        spec, disks=all_disks("/a"), console=CONSOLE, platform=Platform(Accelerator.TCG, Path("/code.fd"))
    )
    there = ConsoleFiles(log=Path("/b/log"), socket=Path("/b/socket"))

    moved = with_files(saved, disks=all_disks("/b"), console=there)

    assert files_of(moved) == ([f"/b/{name}" for name in ALL_NAMES], "/b/vars.fd", "/b/socket", "/b/log")
    with pytest.raises(HypervisorError, match="another guest"):
        with_files(saved, disks=DISKS, console=there)


def test_guest_with_uefi_is_refused_where_there_is_none() -> None:
    with pytest.raises(HypervisorError, match="OVMF"):
        domain_xml(
            replace(SPEC, firmware=Firmware.UEFI),
            disks=all_disks("/a"),
            console=CONSOLE,
            platform=Platform(Accelerator.TCG),
        )


def test_named_processor_is_what_the_guest_gets() -> None:
    for accelerator in Accelerator:
        cpu = ET.fromstring(xml_of(replace(SPEC, cpu_model="Westmere"), accelerator=accelerator)).find("cpu")
        assert cpu is not None
        assert (cpu.get("mode"), cpu.findtext("model")) == ("custom", "Westmere")


def test_capabilities_tell_the_hosts_model_and_those_that_can_be_had() -> None:
    capabilities = """<domainCapabilities><cpu>
      <mode name='host-model' supported='yes'><model fallback='forbid'>Skylake-Client</model>
        <feature policy='require' name='vmx'/><feature policy='disable' name='hle'/>
        <feature policy='require' name='ss'/>
      </mode>
      <mode name='custom' supported='yes'><model usable='yes'>Westmere</model><model usable='no'>EPYC</model>
        <model usable='yes'>Nehalem</model></mode></cpu></domainCapabilities>"""

    with_kvm, without = (parse_cpu(capabilities, each) for each in (Accelerator.KVM, Accelerator.TCG))

    assert (with_kvm.model, with_kvm.features) == ("Skylake-Client", ("ss", "vmx"))
    assert with_kvm.usable_models == without.usable_models == ("Nehalem", "Westmere")
    assert (without.model, without.features) == ("Nehalem", ())
