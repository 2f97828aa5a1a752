"""What a certificate says, for people: who it is for, which names it proves, and when it ends."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from leeward.certificates import principal_of
from leeward.errors import InvalidArgument, NotFound
from leeward.identity import Principal
from leeward.tls import CA_FILE, CERT_FILE, read_pem

_SECONDS_A_DAY = 86_400


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """One certificate. `principal` is None for a CA; `sha256` is the fingerprint in hexadecimal."""

    path: Path
    common_name: str
    principal: Principal | None
    sans: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    serial: int
    sha256: str

    def days_left(self, now: datetime) -> float:
        """Days until it expires; negative when it has."""
        return (self.not_after - now).total_seconds() / _SECONDS_A_DAY


def describe(path: Path) -> CertificateInfo:
    """The first certificate in a PEM file.

    Raises NotFound, FailedPrecondition (unreadable), InvalidArgument (not a certificate of Leeward's).
    """
    try:
        certificate = x509.load_pem_x509_certificate(read_pem(path))
    except ValueError as error:
        raise InvalidArgument.field(str(path), f"is not a PEM certificate: {error}") from error
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return CertificateInfo(
        path=path,
        common_name=str(names[0].value) if names else "",
        principal=None if _is_ca(certificate) else principal_of(certificate),
        sans=_sans(certificate),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        serial=certificate.serial_number,
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def describe_all(path: Path) -> list[CertificateInfo]:
    """Every certificate at `path`: a PEM file, a CA's directory (the CA first), or the directory of one certificate.

    Raises as `describe` does, and NotFound when there is none.
    """
    if path.is_file():
        return [describe(path)]
    found = [describe(file) for file in _certificate_files(path)]
    if not found:
        raise NotFound(f"{path} holds no certificate", resource=str(path))
    return found


def _certificate_files(directory: Path) -> Iterator[Path]:
    for name in (CA_FILE, CERT_FILE):
        if (directory / name).is_file():
            yield directory / name
    yield from sorted(directory.glob(f"[!.]*/{CERT_FILE}"))


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _sans(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in extension.value)
