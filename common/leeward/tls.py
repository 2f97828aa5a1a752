"""TLS material as plain values, and what gRPC makes of it.

Every connection of a cluster is mutual TLS below one CA: a directory with `ca.pem`, `cert.pem` and `key.pem` is all
that a program needs to take part.
"""

from dataclasses import dataclass, field
from pathlib import Path

import grpc

from leeward.errors import FailedPrecondition, InvalidArgument, NotFound
from leeward.identity import Principal

CA_FILE = "ca.pem"
CERT_FILE = "cert.pem"
KEY_FILE = "key.pem"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the three PEM files are, for programs that take paths."""

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def in_directory(cls, directory: Path) -> "TlsFiles":
        """The usual names below `directory`; nothing is read."""
        return cls(ca=directory / CA_FILE, cert=directory / CERT_FILE, key=directory / KEY_FILE)

    def load(self) -> "TlsMaterial":
        """Read and check the files.

        Raises NotFound, FailedPrecondition when they cannot be read, InvalidArgument when they do not belong together.
        """
        material = TlsMaterial(ca_pem=read_pem(self.ca), cert_pem=read_pem(self.cert), key_pem=read_pem(self.key))
        material.check()
        return material


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """A CA to trust, and a certificate with its key to show. The key is left out of `repr`."""

    ca_pem: bytes
    cert_pem: bytes
    key_pem: bytes = field(repr=False)

    @classmethod
    def load(cls, directory: Path) -> "TlsMaterial":
        """Read `ca.pem`, `cert.pem` and `key.pem` from `directory`; raises as `TlsFiles.load` does."""
        return TlsFiles.in_directory(directory).load()

    @property
    def principal(self) -> Principal:
        """Who the certificate says its holder is. Raises InvalidArgument when it is not one of Leeward's."""
        # What reads certificates takes a tenth of a second to import, and who speaks plain text has none.
        from leeward.certificates import load, principal_of

        return principal_of(load(self.cert_pem, CERT_FILE)[0])

    def check(self) -> None:
        """Raises InvalidArgument unless the key belongs to the certificate and the CA signed it.

        Says at start what would otherwise only show as a failed handshake. Expiry is left to the handshake.
        """
        from leeward.certificates import belongs_to, is_issued_by, load

        chain = load(self.cert_pem, CERT_FILE)
        if not belongs_to(self.key_pem, chain[0], name=KEY_FILE):
            raise InvalidArgument.field(KEY_FILE, f"is not the key of the certificate in {CERT_FILE}")
        issuers = [*load(self.ca_pem, CA_FILE), *chain[1:]]
        if not any(is_issued_by(chain[0], issuer) for issuer in issuers):
            raise InvalidArgument.field(CERT_FILE, f"was not signed by the CA in {CA_FILE}")

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a client that shows its certificate and trusts only this CA."""
        return grpc.ssl_channel_credentials(self.ca_pem, self.key_pem, self.cert_pem)

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a server that refuses callers without a certificate of this CA."""
        return grpc.ssl_server_credentials([(self.key_pem, self.cert_pem)], self.ca_pem, require_client_auth=True)


def read_pem(path: Path) -> bytes:
    """The file's bytes. Raises NotFound, or FailedPrecondition when it may not be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound.named(str(path)) from error
    except OSError as error:
        raise FailedPrecondition(f"cannot read {path}: {error.strerror}") from error
