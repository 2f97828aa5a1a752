"""The certificate authority: what it signs, what it refuses, and what it leaves on disk."""

import asyncio
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner

from leeward.cli.pki import app
from leeward.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from leeward.identity import Principal, Role, agent_server_name
from leeward.pki import CertificateAuthority, init_ca
from leeward.pki_info import describe_all
from leeward.tls import TlsFiles, TlsMaterial

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


class FixedClock:
    """A clock that stands where it is put."""

    def __init__(self, now: datetime) -> None:
        self.at = now

    def now(self) -> datetime:
        return self.at

    def monotonic_s(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here waits")

    def timeout(self, seconds: float) -> asyncio.Timeout:
        raise AssertionError("nothing here waits")


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock(datetime(2030, 1, 1, tzinfo=UTC))


@pytest.fixture
def authority(tmp_path: Path, clock: FixedClock) -> CertificateAuthority:
    return init_ca(tmp_path / "pki", clock=clock)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("role", "usages", "names"),
    [
        (Role.ADMIN, {CLIENT}, None),
        (Role.CLIENT, {CLIENT}, None),
        (Role.AGENT, {CLIENT, SERVER}, ["host-a.agent.leeward.internal"]),
        (Role.CONTROLLER, {CLIENT, SERVER}, ["controller.leeward.internal"]),
        (Role.ETCD, {CLIENT, SERVER}, ["etcd.leeward.internal"]),
    ],
)
def test_each_role_gets_the_uses_and_the_name_it_needs(
    authority: CertificateAuthority, role: Role, usages: set[x509.ObjectIdentifier], names: list[str] | None
) -> None:
    material = authority.issue(role, "host-a")
    certificate = x509.load_pem_x509_certificate(material.cert_pem)

    assert material.principal == Principal(role, "host-a")
    assert certificate.subject.rfc4514_string() == f"CN={role}:host-a"
    assert set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == usages
    if names is None:
        with pytest.raises(x509.ExtensionNotFound):
            certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    else:
        sans = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert sans.get_values_for_type(x509.DNSName) == names
        assert sans.get_values_for_type(x509.IPAddress) == []  # localhost only where it is given


def test_validity_is_a_year_and_never_outlasts_the_ca(authority: CertificateAuthority, clock: FixedClock) -> None:
    def end() -> datetime:
        return x509.load_pem_x509_certificate(authority.issue(Role.ADMIN, "root").cert_pem).not_valid_after_utc

    ca_end = authority.certificate.not_valid_after_utc
    assert ca_end - clock.at == timedelta(days=3653)
    assert end() - clock.at == timedelta(days=365)
    clock.at = ca_end - timedelta(days=10)
    assert end() == ca_end
    clock.at = ca_end
    with pytest.raises(FailedPrecondition, match="expired on 2040-01-02"):
        authority.issue(Role.ADMIN, "root")


@pytest.mark.parametrize("name", ["", "A", "1a", "-a", "a-", "a_b", "a.b", "a\n", "ä", "a:b", "../x", "a" * 59])
def test_names_that_cannot_be_are_refused(authority: CertificateAuthority, name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        authority.issue(Role.AGENT, name)
    assert [violation.field for violation in caught.value.fields] == ["name"]


def test_the_longest_name_of_each_role_fits_a_common_name(authority: CertificateAuthority) -> None:
    for role in Role:
        longest = "a" * (63 - len(role))
        assert authority.issue(role, longest).principal.name == longest
        with pytest.raises(InvalidArgument):
            authority.issue(role, longest + "a")


@pytest.mark.parametrize("san", ["", "a b", "*.example.org", "host:1", "host-b.agent.leeward.internal", "10.0.0.0/8"])
def test_sans_that_cannot_be_are_refused(authority: CertificateAuthority, san: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        authority.issue(Role.AGENT, "host-a", sans=[san])
    assert [violation.field for violation in caught.value.fields] == ["sans"]


def test_a_pure_client_takes_no_sans(authority: CertificateAuthority) -> None:
    with pytest.raises(InvalidArgument, match="client is not a server's role"):
        authority.issue(Role.CLIENT, "alice", sans=["10.0.0.1"])


def test_what_is_written_loads_again_and_is_private(authority: CertificateAuthority) -> None:
    material = authority.issue(Role.AGENT, "host-a", sans=["10.0.0.7", "::1", "Host-A.example.org"])
    target = authority.write(material)

    assert target == authority.directory / "agent-host-a"
    assert TlsMaterial.load(target) == material
    assert TlsFiles.in_directory(target).key.read_bytes() == material.key_pem
    assert {mode(authority.directory), mode(target)} == {0o700}
    assert {mode(file) for file in authority.directory.rglob("*.pem")} == {0o600}
    assert {file.name for file in authority.directory.iterdir()} == {"ca.pem", "ca-key.pem", "agent-host-a"}
    assert b"PRIVATE" not in repr(material).encode()
    info = describe_all(target)[1]
    assert info.sans == ("host-a.agent.leeward.internal", "10.0.0.7", "::1", "host-a.example.org")


def test_renewal_has_to_be_asked_for(authority: CertificateAuthority) -> None:
    first, second = (authority.issue(Role.CLIENT, "alice") for _ in range(2))
    target = authority.write(first)
    with pytest.raises(AlreadyExists):
        authority.write(second)
    assert TlsMaterial.load(target) == first
    authority.write(second, replace=True)
    assert TlsMaterial.load(target) == second
    assert {file.name for file in authority.directory.iterdir()} == {"ca.pem", "ca-key.pem", "client-alice"}


def test_a_ca_is_never_overwritten_not_even_a_half_one(authority: CertificateAuthority) -> None:
    before = {file: file.read_bytes() for file in authority.directory.iterdir()}
    with pytest.raises(AlreadyExists):
        init_ca(authority.directory)
    assert {file: file.read_bytes() for file in authority.directory.iterdir()} == before
    (authority.directory / "ca.pem").unlink()
    with pytest.raises(AlreadyExists):
        init_ca(authority.directory)


def test_a_ca_loads_again_and_signs_for_the_same_cluster(authority: CertificateAuthority) -> None:
    again = CertificateAuthority.load(authority.directory)
    assert again.issue(Role.ADMIN, "root").ca_pem == authority.ca_pem


def test_loading_says_what_is_wrong(authority: CertificateAuthority, tmp_path: Path, clock: FixedClock) -> None:
    with pytest.raises(NotFound, match="leeward pki init"):
        CertificateAuthority.load(tmp_path / "nothing")
    target = authority.write(authority.issue(Role.ADMIN, "root"))
    files = TlsFiles.in_directory(target)

    files.key.write_bytes(authority.issue(Role.ADMIN, "root").key_pem)
    with pytest.raises(InvalidArgument, match=r"key\.pem: is not the key of the certificate"):
        files.load()
    authority.write(authority.issue(Role.ADMIN, "root"), replace=True)
    files.ca.write_bytes(init_ca(tmp_path / "other", clock=clock).ca_pem)
    with pytest.raises(InvalidArgument, match=r"cert\.pem: was not signed by the CA"):
        files.load()
    files.cert.write_text("nonsense")
    with pytest.raises(InvalidArgument, match=r"cert\.pem: is not a PEM certificate"):
        files.load()
    files.key.unlink()
    with pytest.raises(NotFound, match=r"key\.pem does not exist"):
        files.load()


def test_the_commands_make_issue_and_show(tmp_path: Path) -> None:
    runner, directory = CliRunner(), str(tmp_path / "pki")
    made = runner.invoke(app, ["init", directory], catch_exceptions=False)
    assert "Made a CA" in made.output
    issued = runner.invoke(app, ["issue", "agent", "host-a", "--san", "10.0.0.7", directory], catch_exceptions=False)
    assert "Issued agent:host-a" in issued.output
    assert TlsMaterial.load(tmp_path / "pki" / "agent-host-a").principal.server_name == agent_server_name("host-a")
    shown = runner.invoke(app, ["show", directory], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "Leeward CA" in shown.output
    assert "agent:host-a" in shown.output
    assert runner.invoke(app, ["show", directory, "--fail-within", "400"]).exit_code == 1
    assert isinstance(runner.invoke(app, ["issue", "king", "x", directory]).exception, InvalidArgument)
