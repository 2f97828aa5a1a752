"""How errors are told: what went wrong, why, and what to do next."""

import json
import sys
from collections.abc import Iterator
from typing import Any

from leeward.cli.context import Format
from leeward.cli.exit_codes import ExitCode, exit_code_of
from leeward.errors import LeewardError

_NOUNS = {"instances": "instance", "images": "image", "nodes": "node", "flavors": "flavor", "operations": "operation"}

_NEXT = {
    "NO_NODE_FITS": "`leeward node list` shows what is free; make room, uncordon a node or take a smaller flavor.",
    "NODE_UNFIT": "Name another node, or none to let the scheduler choose.",
    "TLS_REFUSED": "Check --tls-dir (LEEWARD_TLS_DIR), and the certificates with `leeward pki show DIR`.",
    "UNAUTHENTICATED": "Give --tls-dir (LEEWARD_TLS_DIR) with a certificate that `leeward pki issue` made.",
    "PERMISSION_DENIED": "Use a certificate of a role that may: `leeward pki issue admin NAME DIR` makes an admin's.",
    "CONFLICT": "Somebody else changed it first: look again, and repeat the command.",
    "UNIMPLEMENTED": "The controller does not have this yet; `leeward --version` tells this program's version.",
    "IMAGE_REFUSED": "Check the file with `qemu-img info FILE`, and give its --format.",
    "CONSOLE_IN_USE": "Somebody else is attached: --take-over ends that.",
    "INSTANCE_LOCKED": "Ask who locked it, or an admin, for `leeward instance unlock`.",
    "NOT_LOCKER": "Ask who locked it, or an admin, for `leeward instance unlock`.",
    "AGENT_UNAVAILABLE": "`leeward node list` shows which nodes are alive.",
}


def report(error: LeewardError, format: Format) -> None:
    """Tell an error on standard error."""
    if format is Format.JSON:
        print(json.dumps({"error": _as_json(error)}), file=sys.stderr)
        return
    print(f"Error: {_headline(error)}", file=sys.stderr)
    for line in _details(error):
        print(f"  {line}", file=sys.stderr)
    advice = next_step(error)
    if advice:
        print(f"Next: {advice}", file=sys.stderr)


def report_usage(message: str) -> None:
    """Tell as JSON that a command line is wrong."""
    error = {"code": "INVALID_ARGUMENT", "reason": "USAGE", "message": message, "exit_code": int(ExitCode.USAGE)}
    print(json.dumps({"error": error}), file=sys.stderr)


def one_line(error: LeewardError) -> str:
    """The error with its reasons in one line, for a list of several."""
    return "; ".join([_headline(error), *_details(error)])


def next_step(error: LeewardError) -> str:
    """What to do about it; empty when there is nothing better to say than the error itself."""
    operation = error.metadata.get("operation", "")
    match error.specific_reason:
        case "OPERATION_RUNNING" if operation:
            return f"`leeward operation wait {operation}`, or `leeward operation cancel {operation}`, then repeat."
        case "DEADLINE_EXCEEDED" if operation:
            return f"It goes on: `leeward operation watch {operation}` follows it."
        case "WRONG_STATE" if allowed := error.metadata.get("allowed_states"):
            return f"Bring it into one of these states first: {allowed}."
        case "NOT_FOUND":
            noun = _noun(error.resource)
            return f"`leeward {noun} list` shows those there are." if noun else ""
        case reason if reason in _NEXT:
            return _NEXT[reason]
    if request_id := error.metadata.get("request_id"):
        return f"It may have been carried out (request {request_id}): look before you repeat the command."
    if endpoints := error.metadata.get("endpoints"):
        return f"Check that a controller runs at {endpoints}, or name another with --endpoint (LEEWARD_ENDPOINT)."
    if operation:
        return f"`leeward operation get {operation}` tells its steps."
    return ""


def _headline(error: LeewardError) -> str:
    """The message, without the reasons that are listed below it."""
    if error.violations and error.violations[0].subject:
        head, separator, _ = error.message.partition(f": {error.violations[0].subject}")
        if separator:
            return head
    return error.message


def _details(error: LeewardError) -> Iterator[str]:
    headline = _headline(error)
    for violation in error.violations:
        if violation.description not in headline:
            yield f"{violation.subject}: {violation.description}" if violation.subject else violation.description
    for field in error.fields:
        if field.description not in headline:
            yield f"{field.field}: {field.description}"


def _noun(resource: str | None) -> str:
    parts = (resource or "").split("/")
    return _NOUNS.get(parts[-2], "") if len(parts) >= 2 else ""


def _as_json(error: LeewardError) -> dict[str, Any]:
    return {
        "code": error.code.name,
        "reason": error.specific_reason,
        "message": error.message,
        "exit_code": int(exit_code_of(error)),
        "resource": error.resource,
        "metadata": error.metadata,
        "fields": [{"field": each.field, "description": each.description} for each in error.fields],
        "violations": [
            {"type": each.type, "subject": each.subject, "description": each.description} for each in error.violations
        ],
        "retriable": error.retriable,
        "next": next_step(error),
    }
