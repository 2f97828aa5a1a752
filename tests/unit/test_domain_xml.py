"""The XML of a guest's domain, as libvirt reads it."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leeward.agent.types import DiskFormat, GuestSpec, Nic
from leeward.errors import HypervisorError
from leeward_agent.hypervisors.libvirt.domain_xml import (
    METADATA_NAMESPACE,
    Accelerator,
    GuestMetadata,
    domain_name,
    domain_uuid,
    domain_xml,
    metadata_for_libvirt,
    metadata_of,
    parse_metadata,
    uid_of_domain_name,
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
# What XML can hold at all; other characters are refused long before a guest is started.
NAMES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xD7FF), min_size=1)


def xml_of(spec: GuestSpec = SPEC, *, accelerator: Accelerator = Accelerator.TCG) -> str:
    return domain_xml(spec, disk=Path("/pool/a & b.qcow2"), console_log=Path("/console.log"), accelerator=accelerator)


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
