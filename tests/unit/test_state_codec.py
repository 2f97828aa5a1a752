"""Every record survives being kept: dataclass and message have the same fields, and nothing is lost on the way."""

from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leeward.agent.convert import encode_node_report
from leeward.agent.types import NodeReport, PoolKind, PoolReport
from leeward.errors import DataLoss, InternalError
from leeward.mapping import check
from leeward.state.v1 import state_pb2 as pb
from leeward_controller.adapters.convert_state import MESSAGES, StateCodec
from leeward_controller.domain.instance import Instance
from leeward_controller.records import ALL_KINDS

CODEC = StateCodec()

# What protobuf can hold: text without lone surrogates, integers of 32 bits, times of microseconds in UTC.
st.register_type_strategy(str, st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
st.register_type_strategy(int, st.integers(min_value=0, max_value=2**31 - 1))
st.register_type_strategy(float, st.floats(allow_nan=False))
st.register_type_strategy(
    datetime,
    st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31), timezones=st.just(UTC)),
)


def _parts(kind: type[Any], seen: dict[str, type[Any]]) -> dict[str, type[Any]]:
    """All dataclasses that `kind` is made of, by name, itself included."""
    if kind.__name__ not in seen:
        seen[kind.__name__] = kind
        pending = [get_type_hints(kind)[field.name] for field in fields(kind)]
        while pending:
            hint = pending.pop()
            pending += get_args(hint)
            if isinstance(hint, type) and is_dataclass(hint):
                _parts(hint, seen)
    return seen


def test_every_kind_of_record_has_a_message() -> None:
    assert set(MESSAGES) == {kind.type for kind in ALL_KINDS}


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_fields_agree_in_every_part(kind: type[Any]) -> None:
    differences = [
        difference for name, part in _parts(kind, {}).items() for difference in check(part, getattr(pb, name))
    ]
    assert differences == []


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_records_come_back_as_they_were(kind: type[Any], data: st.DataObject) -> None:
    record = data.draw(st.from_type(kind))
    kept = CODEC.encode(record, write_id="w1")
    assert CODEC.decode(kind, kept) == record
    assert CODEC.write_id(kept) == "w1"
    assert CODEC.encode(CODEC.decode(kind, kept), write_id="w1") == kept


def test_bytes_that_are_no_record_are_data_loss() -> None:
    with pytest.raises(DataLoss):
        CODEC.decode(Instance, b"\xff\xff")
    unknown_state = pb.Stored(write_id="w", value=pb.Instance(state="DANCING").SerializeToString())
    with pytest.raises(DataLoss, match="DANCING"):
        CODEC.decode(Instance, unknown_state.SerializeToString())
    with pytest.raises(DataLoss):
        CODEC.write_id(b"\x0a\xff")


def test_only_records_are_kept() -> None:
    with pytest.raises(InternalError, match="str"):
        CODEC.encode("text", write_id="w")


def test_a_heartbeat_is_read_and_a_broken_one_is_data_loss() -> None:
    report = NodeReport(
        node="n1",
        boot_id="b",
        agent_id="a",
        address="127.0.0.1:1",
        vcpus=4,
        memory_mib=1024,
        pools=(PoolReport("p", PoolKind.DIRECTORY, 10, 5),),
        hypervisor="simulated",
        hypervisor_version="1",
        agent_version="1",
        guard_armed=True,
        lease_ttl_s=5.0,
        guard_delay_s=1.0,
    )
    assert CODEC.decode_report(encode_node_report(report)) == report
    with pytest.raises(DataLoss):
        CODEC.decode_report(b"\xff")
