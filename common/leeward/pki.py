"""A small certificate authority for one cluster: ECDSA P-256, one CA, one certificate for each program or person.

On disk:

    DIR/ca.pem  DIR/ca-key.pem                            the authority; only ca-key.pem can sign
    DIR/<role>-<name>/{ca.pem,cert.pem,key.pem}           what a program takes with it, see `leeward.tls`

There is no revocation list. A certificate that must no longer count is outlived (a year) or the CA is replaced.
"""

import ipaddress
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from leeward.clock import Clock, SystemClock
from leeward.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from leeward.identity import INTERNAL_DOMAIN, Principal, Role
from leeward.pki_files import make_private_directory, replace_directory, write_new
from leeward.tls import CA_FILE, CERT_FILE, KEY_FILE, TlsMaterial, read_pem

CA_KEY_FILE = "ca-key.pem"
CA_LIFETIME = timedelta(days=3653)
LEAF_LIFETIME = timedelta(days=365)

# Hosts whose clocks run behind must accept a certificate that was signed a moment ago.
_BACKDATE = timedelta(hours=1)
_DNS_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*")


class CertificateAuthority:
    """The key that decides who belongs to a cluster. Build it by `init_ca` or `load`."""

    def __init__(
        self, *, directory: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, clock: Clock
    ) -> None:
        self.directory = directory
        self.certificate = certificate
        self._key = key
        self._clock = clock

    @classmethod
    def load(cls, directory: Path, *, clock: Clock | None = None) -> "CertificateAuthority":
        """The CA in `directory`. Raises NotFound, FailedPrecondition (unreadable), InvalidArgument (not a CA)."""
        if not (directory / CA_FILE).exists():
            raise NotFound(
                f"{directory} holds no CA: make one with `leeward pki init {directory}`", resource=str(directory)
            )
        certificate = _load_certificate(read_pem(directory / CA_FILE))
        key = _load_key(read_pem(directory / CA_KEY_FILE))
        if key.public_key() != certificate.public_key():
            raise InvalidArgument.field(CA_KEY_FILE, f"is not the key of the certificate in {CA_FILE}")
        return cls(directory=directory, certificate=certificate, key=key, clock=clock or SystemClock())

    @property
    def ca_pem(self) -> bytes:
        """The certificate that everyone in the cluster trusts."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(self, role: Role, name: str, *, sans: Sequence[str] = ()) -> TlsMaterial:
        """A new key and a certificate for `role:name`, valid for a year but never longer than the CA.

        `sans` are the addresses and DNS names that others dial it by; the role's own DNS name is added. Nothing is
        written. Raises InvalidArgument for a name or SAN that cannot be, FailedPrecondition when the CA has expired.
        """
        principal = Principal.of(role, name)
        now = self._clock.now()
        ca_end = self.certificate.not_valid_after_utc
        if now >= ca_end:
            raise FailedPrecondition(f"the CA in {self.directory} expired on {ca_end:%Y-%m-%d}")
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(_common_name(principal.common_name))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATE)
            .not_valid_after(min(now + LEAF_LIFETIME, ca_end))
        )
        for extension, critical in _leaf_extensions(principal, sans, key.public_key(), self._key.public_key()):
            builder = builder.add_extension(extension, critical)
        certificate = builder.sign(self._key, hashes.SHA256())
        return TlsMaterial(ca_pem=self.ca_pem, cert_pem=certificate.public_bytes(Encoding.PEM), key_pem=_key_pem(key))

    def write(self, material: TlsMaterial, *, replace: bool = False) -> Path:
        """Write a certificate to its own directory below the CA's, whole or not at all; returns that directory.

        Raises AlreadyExists when there is one and `replace` is not set, FailedPrecondition when it cannot be written.
        """
        principal = material.principal
        target = leaf_directory(self.directory, principal)
        files = {CA_FILE: material.ca_pem, CERT_FILE: material.cert_pem, KEY_FILE: material.key_pem}
        replace_directory(target, files, replace=replace)
        return target


def init_ca(directory: Path, *, clock: Clock | None = None) -> CertificateAuthority:
    """Make a new CA in `directory`, valid for ten years.

    Raises AlreadyExists when any part of a CA is there: a CA that is overwritten takes the whole cluster with it.
    """
    clock = clock or SystemClock()
    make_private_directory(directory)
    for name in (CA_FILE, CA_KEY_FILE):
        if (directory / name).exists():
            raise AlreadyExists(
                f"{directory / name} exists already: a CA is never overwritten", resource=str(directory)
            )
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _self_signed(key, clock.now())
    # The key goes first: without its certificate it is of no use to anybody, and `load` says what is missing.
    write_new(directory / CA_KEY_FILE, _key_pem(key))
    write_new(directory / CA_FILE, certificate.public_bytes(Encoding.PEM))
    return CertificateAuthority(directory=directory, certificate=certificate, key=key, clock=clock)


def leaf_directory(directory: Path, principal: Principal) -> Path:
    """Where the certificate of `principal` is kept below a CA's directory."""
    return directory / f"{principal.role}-{principal.name}"


def _self_signed(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    serial = x509.random_serial_number()
    # Two CAs with one subject are told apart only by a failing signature, so each gets a subject of its own.
    name = _common_name(f"Leeward CA {serial:x}"[:27])
    usage = _key_usage(signs_certificates=True)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _leaf_extensions(
    principal: Principal,
    sans: Sequence[str],
    public_key: ec.EllipticCurvePublicKey,
    ca_public_key: ec.EllipticCurvePublicKey,
) -> list[tuple[x509.ExtensionType, bool]]:
    """The extensions of a leaf, each with whether it is critical."""
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(signs_certificates=False), True),
        (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_public_key), False),
    ]
    if principal.serves:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        names = [x509.DNSName(principal.server_name), *map(_general_name, dict.fromkeys(sans))]
        extensions.append((x509.SubjectAlternativeName(names), False))
    elif sans:
        raise InvalidArgument.field("sans", f"{principal.role} is not a server's role, so it takes no names")
    return [*extensions, (x509.ExtendedKeyUsage(usages), False)]


def _general_name(san: str) -> x509.GeneralName:
    """An IP address or DNS name for a certificate. Raises InvalidArgument."""
    try:
        return x509.IPAddress(ipaddress.ip_address(san))
    except ValueError:
        # Not an address, so it has to be a DNS name.
        name = san.lower()
    if _DNS_NAME.fullmatch(name) is None:
        raise InvalidArgument.field("sans", f"{san!r} is neither an IP address nor a DNS name")
    if name == INTERNAL_DOMAIN or name.endswith(f".{INTERNAL_DOMAIN}"):
        raise InvalidArgument.field(
            "sans", f"{san!r}: names below {INTERNAL_DOMAIN} are proof of a role, and never given"
        )
    return x509.DNSName(name)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load_certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise InvalidArgument.field(CA_FILE, f"is not a PEM certificate: {error}") from error


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidArgument.field(CA_KEY_FILE, f"is not an unencrypted PEM private key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidArgument.field(CA_KEY_FILE, "is not an elliptic curve key")
    return key
