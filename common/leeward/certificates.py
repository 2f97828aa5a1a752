"""What PEM files of certificates and keys say."""

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from leeward.errors import InvalidArgument
from leeward.identity import Principal


def principal_of(certificate: x509.Certificate) -> Principal:
    """Who a certificate names, by its only Common Name. Raises InvalidArgument when it names nobody of Leeward's."""
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    if len(names) != 1:
        raise InvalidArgument.field("common_name", f"the certificate has {len(names)} Common Names instead of one")
    return Principal.parse(str(names[0].value))


def load(pem: bytes, name: str) -> list[x509.Certificate]:
    """The certificates in a file of that name. Raises InvalidArgument when it is none of certificates."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise InvalidArgument.field(name, f"is not a PEM certificate: {error}") from error


def belongs_to(key_pem: bytes, certificate: x509.Certificate, *, name: str) -> bool:
    """Whether a private key, of a file of that name, is a certificate's. Raises InvalidArgument when it is no key."""
    try:
        key = load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidArgument.field(name, f"is not an unencrypted PEM private key: {error}") from error
    halves = (key.public_key(), certificate.public_key())
    one, other = (half.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for half in halves)
    return one == other


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the issuer signed the certificate."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        # These are how cryptography says that the issuer's name differs, its key is of another kind, or the signature
        # is not its own.
        return False
    return True
