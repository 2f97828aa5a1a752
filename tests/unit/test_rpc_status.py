"""Errors over the wire: nothing that a client needs is lost, and nothing grows too large to arrive."""

from collections.abc import Callable

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status

from leeward import errors
from leeward.errors import DOMAIN, Code, FieldViolation, LeewardError, Violation
from leeward.rpc.client_errors import rpc_errors, to_leeward_error
from leeward.rpc.status import MAX_STATUS_BYTES, error_from, status_of, wire_status_of


def all_classes() -> list[type[LeewardError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, LeewardError)]
    return [cls for cls in found if cls is not LeewardError and cls is not errors.Compacted]


def contents(error: LeewardError) -> tuple[object, ...]:
    return (
        type(error),
        error.message,
        error.code,
        error.specific_reason,
        error.retriable,
        error.metadata,
        error.fields,
        error.violations,
        error.resource,
        error.retry_after_s,
    )


@pytest.mark.parametrize("cls", all_classes())
@pytest.mark.parametrize("encode", [status_of, wire_status_of])
def test_every_class_survives_the_way_there_and_back(
    cls: type[LeewardError], encode: Callable[[LeewardError], Status]
) -> None:
    error = cls(
        "the disk of ‘web’ is gone",
        metadata={"node": "host-a"},
        fields=[FieldViolation("instance.flavor", "is empty")],
        violations=[Violation("MEMORY", "nodes/host-a", "512 MiB short")],
        resource="projects/p/instances/web",
        retry_after_s=1.5,
    )
    wire = Status.FromString(encode(error).SerializeToString())
    assert contents(error_from(wire)) == contents(error)


def test_a_compacted_error_keeps_its_revision() -> None:
    back = error_from(wire_status_of(errors.Compacted(42)))
    assert isinstance(back, errors.Compacted)
    assert back.revision == 42


def test_clients_of_other_languages_find_the_standard_details() -> None:
    error = errors.ResourceExhausted(
        "no more instances",
        reason="QUOTA_EXCEEDED",
        violations=[Violation("instances", "projects/p", "10 of 10 in use")],
        fields=[FieldViolation("count", "too many")],
        resource="projects/p/instances/web",
        retry_after_s=0.25,
    )
    status = status_of(error)
    found: dict[str, object] = {}
    for kind in (ErrorInfo, BadRequest, QuotaFailure, ResourceInfo, RetryInfo):
        for detail in status.details:
            message = kind()
            if detail.Unpack(message):
                found[kind.__name__] = message

    assert status.code == 8
    assert found == {
        "ErrorInfo": ErrorInfo(reason="QUOTA_EXCEEDED", domain=DOMAIN, metadata={"retriable": "false"}),
        "BadRequest": BadRequest(field_violations=[{"field": "count", "description": "too many"}]),
        "QuotaFailure": QuotaFailure(
            violations=[
                {"quota_metric": "instances", "subject": "projects/p", "description": "10 of 10 in use"},
            ]
        ),
        "ResourceInfo": ResourceInfo(resource_type="leeward.dev/Instance", resource_name="projects/p/instances/web"),
        "RetryInfo": RetryInfo(retry_delay={"nanos": 250_000_000}),
    }


def test_a_reason_from_a_newer_server_falls_back_to_the_code_and_its_own_word_on_retrying() -> None:
    newer = errors.Unavailable("half written", reason="POOL_INDEFINITE")
    newer.retriable = False
    back = error_from(wire_status_of(newer))
    assert type(back) is errors.Unavailable
    assert (back.specific_reason, back.retriable) == ("POOL_INDEFINITE", False)
    assert errors.Unavailable.retriable is True


@pytest.mark.parametrize("code", [*range(1, 17), 99])
def test_statuses_that_are_not_ours_become_errors_of_their_code(code: int) -> None:
    back = error_from(Status(code=code, message="said somebody"))
    expected = {2: Code.INTERNAL, 11: Code.FAILED_PRECONDITION, 99: Code.INTERNAL}.get(code) or Code(code)
    assert back.code is expected
    assert back.message == "said somebody"
    assert not back.metadata


def test_an_error_of_any_size_fits_and_says_what_it_left_out() -> None:
    reasons = [Violation("MEMORY", f"nodes/host-{n}", "ä" * 2_000) for n in range(5_000)]
    error = errors.NoNodeFits("ö" * 10_000, violations=reasons, metadata={"a": "x" * 9_000, "b": "y" * 9_000})
    status = wire_status_of(error)
    back = error_from(status)

    assert status.ByteSize() <= MAX_STATUS_BYTES
    assert type(back) is errors.NoNodeFits
    assert back.message.startswith("öö")
    assert back.message.endswith("…")
    assert int(back.metadata["omitted_details"]) == 5_000 - len(back.violations)
    assert len(error_from(status_of(error)).violations) == 5_000


def rpc_error(code: grpc.StatusCode, details: str, status: bytes | None = None) -> grpc.aio.AioRpcError:
    metadata = grpc.aio.Metadata(*([("grpc-status-details-bin", status)] if status is not None else []))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details)


def test_a_call_that_was_never_sent_is_told_from_one_that_may_have_happened() -> None:
    refused = "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:1: Connection refused"
    kinds = {"unreachable": errors.AgentUnavailable, "lost": errors.AgentIndefinite}

    def agent_error(code: grpc.StatusCode, details: str) -> LeewardError:
        return to_leeward_error(rpc_error(code, details), peer="the agent of host-a", **kinds)

    never = agent_error(grpc.StatusCode.UNAVAILABLE, refused)
    assert type(never) is errors.AgentUnavailable
    assert str(never) == "cannot reach the agent of host-a: connection refused"
    for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        maybe = agent_error(code, "Socket closed")
        assert type(maybe) is errors.AgentIndefinite
        assert maybe.retriable is False
    assert type(agent_error(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")) is errors.Unimplemented


def test_without_a_class_for_lost_calls_they_are_not_retriable() -> None:
    lost = to_leeward_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "Socket closed"), peer="the controller")
    assert (type(lost), lost.specific_reason, lost.retriable) == (errors.Unavailable, "CONNECTION_LOST", False)


def test_the_servers_own_error_comes_through_whatever_the_classes_for_lost_calls() -> None:
    status = wire_status_of(errors.Draining("going down")).SerializeToString()
    with (
        pytest.raises(errors.Draining, match="going down"),
        rpc_errors("the agent of host-a", lost=errors.AgentIndefinite),
    ):
        raise rpc_error(grpc.StatusCode.UNAVAILABLE, "going down", status)


@pytest.mark.parametrize("garbage", [b"\xff\xff", Status(code=5, message="x").SerializeToString()])
def test_details_that_are_broken_or_contradict_the_code_are_passed_over(garbage: bytes) -> None:
    error = to_leeward_error(rpc_error(grpc.StatusCode.INTERNAL, "boom", garbage), peer="the controller")
    assert type(error) is errors.InternalError
    assert "boom" in error.message
