"""What Leeward shows etcd, and what it trusts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc


@dataclass(frozen=True, slots=True)
class EtcdTls:
    """Mutual TLS towards etcd, in PEM.

    `server_names` maps an endpoint to the name its certificate must carry where that is not the endpoint's host.
    """

    ca_pem: bytes
    cert_pem: bytes
    key_pem: bytes = field(repr=False)
    server_names: Mapping[str, str] = field(default_factory=dict)

    def credentials(self) -> grpc.ChannelCredentials:
        """The same for gRPC."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca_pem, private_key=self.key_pem, certificate_chain=self.cert_pem
        )
