"""Resource names after Google's API improvement proposals (AIP-122), parsed and checked in one place."""

import re

from leeward.errors import InvalidArgument

_ID = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?\Z")
ID_RULE = "1 to 63 characters of a-z, 0-9 and '-', starting with a letter and not ending in '-'"


def check_id(value: str, *, field: str) -> str:
    """`value` when it may be the last part of a resource name. Raises InvalidArgument naming `field`."""
    if not _ID.match(value):
        raise InvalidArgument.field(field, f"{value!r} is not a valid id; allowed: {ID_RULE}")
    return value


def _parse(name: str, pattern: tuple[str, ...], *, field: str) -> tuple[str, ...]:
    parts = name.split("/")
    expected = "/".join(pattern)
    if len(parts) != len(pattern):
        raise InvalidArgument.field(field, f"{name!r} is not a resource name of the form {expected}")
    ids = []
    for part, want in zip(parts, pattern, strict=True):
        if not want.startswith("{"):
            if part != want:
                raise InvalidArgument.field(field, f"{name!r} is not a resource name of the form {expected}")
        elif not _ID.match(part):
            raise InvalidArgument.field(field, f"{part!r} in {name!r} is not a valid id; allowed: {ID_RULE}")
        else:
            ids.append(part)
    return tuple(ids)


def project(name: str, *, field: str = "parent") -> str:
    """The project id in `projects/{project}`."""
    return _parse(name, ("projects", "{project}"), field=field)[0]


def project_instance(name: str, *, field: str = "name") -> tuple[str, str]:
    """Project and instance id in `projects/{project}/instances/{instance}`."""
    project_id, instance_id = _parse(name, ("projects", "{project}", "instances", "{instance}"), field=field)
    return project_id, instance_id


def project_image(name: str, *, field: str = "name") -> tuple[str, str]:
    """Project and image id in `projects/{project}/images/{image}`."""
    project_id, image_id = _parse(name, ("projects", "{project}", "images", "{image}"), field=field)
    return project_id, image_id


def project_backup_policy(name: str, *, field: str = "name") -> tuple[str, str]:
    """Project and policy id in `projects/{project}/backupPolicies/{backup_policy}`."""
    pattern = ("projects", "{project}", "backupPolicies", "{backup_policy}")
    project_id, policy_id = _parse(name, pattern, field=field)
    return project_id, policy_id


def project_group(name: str, *, field: str = "name") -> tuple[str, str]:
    """Project and group id in `projects/{project}/groups/{group}`."""
    project_id, group_id = _parse(name, ("projects", "{project}", "groups", "{group}"), field=field)
    return project_id, group_id


def node(name: str, *, field: str = "name") -> str:
    """The node id in `nodes/{node}`."""
    return _parse(name, ("nodes", "{node}"), field=field)[0]


def flavor(name: str, *, field: str = "name") -> str:
    """The flavor id in `flavors/{flavor}`."""
    return _parse(name, ("flavors", "{flavor}"), field=field)[0]


def failover(name: str, *, field: str = "name") -> str:
    """The failover id in `failovers/{failover}`."""
    return _parse(name, ("failovers", "{failover}"), field=field)[0]


def operation(name: str, *, field: str = "name") -> str:
    """The operation id in `operations/{operation}`."""
    prefix, _, operation_id = name.partition("/")
    if prefix != "operations" or not re.fullmatch(r"[a-z2-7]{26}", operation_id):
        raise InvalidArgument.field(field, f"{name!r} is not a resource name of the form operations/{{operation}}")
    return operation_id


def instance_name(project_id: str, instance_id: str) -> str:
    """`projects/{project}/instances/{instance}`."""
    return f"projects/{project_id}/instances/{instance_id}"


def image_name(project_id: str, image_id: str) -> str:
    """`projects/{project}/images/{image}`."""
    return f"projects/{project_id}/images/{image_id}"


def backup_policy_name(project_id: str, policy_id: str) -> str:
    """`projects/{project}/backupPolicies/{backup_policy}`."""
    return f"projects/{project_id}/backupPolicies/{policy_id}"


def group_name(project_id: str, group_id: str) -> str:
    """`projects/{project}/groups/{group}`."""
    return f"projects/{project_id}/groups/{group_id}"
