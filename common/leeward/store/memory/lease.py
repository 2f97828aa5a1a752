"""Leases of the in-memory store."""

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True)
class Lease:
    """A lease, the keys it holds in the order they were put, and the task that ends it."""

    lease_id: int
    ttl_s: int
    expires_at: float
    keys: dict[str, None] = field(default_factory=dict)
    expiry: asyncio.Task[None] | None = None
