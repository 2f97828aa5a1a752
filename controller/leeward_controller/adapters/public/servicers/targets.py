"""What every request has that changes one thing."""

from typing import Protocol

from leeward_controller.services.instances import Target


class TargetRequest(Protocol):
    """Names a thing, perhaps a version of it, and tells whether to change it."""

    name: str
    etag: str
    validate_only: bool


def target_of(request: TargetRequest) -> Target:
    """The thing that the request is about."""
    return Target(request.name, request.etag, request.validate_only)
