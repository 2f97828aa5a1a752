"""The command line without a cluster: what it imports, refuses, understands and tells."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from google.longrunning.operations_pb2 import Operation
from google.protobuf.duration_pb2 import Duration

from leeward.cli.console import plain_text
from leeward.cli.context import Format, Options, resolve
from leeward.cli.describe import describe
from leeward.cli.errors import report
from leeward.cli.exit_codes import exit_code_of
from leeward.cli.image import ImageFormat, detect_format
from leeward.cli.main import run
from leeward.cli.operation_text import migration_text, percent_of
from leeward.cli.output import table_lines
from leeward.cli.progress import OperationLines
from leeward.cli.units import GIB, MIB, age_text, duration_text, parse_duration, parse_size, size_text
from leeward.errors import (
    AlreadyExists,
    DeadlineExceeded,
    HypervisorError,
    InvalidArgument,
    LeewardError,
    NoNodeFits,
    NotFound,
    OperationRunning,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Violation,
    WrongState,
)
from leeward.v1.instance_pb2 import Instance, InstanceResources
from leeward.v1.node_pb2 import Node
from leeward.v1.operation_pb2 import (
    MigrationPhase,
    MigrationProgress,
    OperationMetadata,
    OperationPhase,
    OperationStep,
    OperationType,
)
from leeward.v1.operation_service_pb2 import WatchOperationResponse

CLOSED = "127.0.0.1:1"

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ENDPOINT", "TLS_DIR", "PROJECT", "CONTEXT", "ETCD"):
        monkeypatch.delenv(f"LEEWARD_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def write_config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config" / "leeward" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], ("grpc", "google.protobuf", "rich", "cryptography", "yaml", "pydantic", "leeward_lab.dev")),
        (["instance", "--help"], ("grpc", "google.protobuf", "rich", "cryptography", "yaml", "leeward_lab")),
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str], unwanted: tuple[str, ...]) -> None:
    program = (
        "import sys; from leeward.cli.main import run; code = run(sys.argv[2:]);"
        "found = [name for name in sys.argv[1].split(',') if name in sys.modules];"
        "sys.exit(f'imported {found}' if found else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, ",".join(unwanted), *arguments], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Commands:" in done.stdout


def test_the_help_lists_nouns_plugins_and_exit_codes(capsys: Capture) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    for word in ("instance", "node", "image", "flavor", "operation", "pki", "admin", "dev", "7\n  unavailable"):
        assert word in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["instance", "lst"], "No such command 'lst'"),
        (["instanc"], "Did you mean 'instance'"),
        (["instance", "get"], "INSTANCE"),
        (["instance", "get", "Web_1"], "is not a valid id"),
        (["instance", "stop", "web-1", "--grace-period", "soon"], "is not a duration"),
        (["instance", "stop", "web-1", "--grace-period", "5s", "--force"], "one or the other"),
        (["instance", "create", "web-1", "--image", "i", "--flavor", "f", "--label", "x"], "is not KEY=VALUE"),
        (["instance", "delete", "web-1"], "--yes"),
        (["flavor", "create", "small", "--vcpus", "1", "--memory", "128", "--disk", "1G"], "with its unit"),
        (["flavor", "create", "small", "--vcpus", "1", "--memory", "128M", "--disk", "1.5G"], "whole number of GiB"),
        (["instance", "list", "--endpoint", "10.1.2.3:7443"], "plain text is for loopback only"),
        (["instance", "list", "--endpoint", "nonsense"], "is not host:port"),
        (["instance", "list", "--context", "lab"], "there is: none"),
        (["instance", "get", "web-1", "--project", "-"], "name its project"),
        (["operation", "wait", "web-1"], "operations/{operation}"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_asked(arguments: list[str], told: str, capsys: Capture) -> None:
    assert run(arguments) == 2
    assert told in capsys.readouterr().err


def test_an_unreachable_controller_is_told_with_its_endpoints(capsys: Capture) -> None:
    assert run(["instance", "list", "--endpoint", f"{CLOSED},localhost:1"]) == 7
    told = capsys.readouterr().err
    assert f"{CLOSED}: connection refused" in told
    assert "localhost:1" in told
    assert "--endpoint" in told


def test_with_json_errors_are_json_wherever_the_option_stands(capsys: Capture) -> None:
    for arguments in (["-o", "json", "node", "list"], ["node", "list", "-o", "json"]):
        assert run([*arguments, "--endpoint", CLOSED]) == 7
        error = json.loads(capsys.readouterr().err)["error"]
        assert (error["code"], error["exit_code"]) == ("UNAVAILABLE", 7)
        assert error["metadata"]["endpoints"] == CLOSED
    assert run(["-o", "json", "node", "gett"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["exit_code"] == 2


def test_what_was_given_nearest_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(
        tmp_path,
        'current = "lab"\n[contexts.lab]\nendpoints = ["a:1", "b:2"]\ntls_dir = "/pki"\nproject = "blue"\n'
        '[contexts.prod]\nendpoints = ["c:3"]\n',
    )
    lab = resolve(Options())
    assert (lab.endpoints, lab.tls_dir, lab.project) == (("a:1", "b:2"), Path("/pki"), "blue")
    assert resolve(Options(context="prod")).project == "default"
    monkeypatch.setenv("LEEWARD_ENDPOINT", "d:4, e:5")
    monkeypatch.setenv("LEEWARD_PROJECT", "green")
    assert resolve(Options()).endpoints == ("d:4", "e:5")
    assert resolve(Options(endpoint=["f:6"], project="red")) == resolve(
        Options(endpoint=["f:6"], project="red", context="lab")
    )
    assert resolve(Options(project="red")).project == "red"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("curent = 'lab'", "did you mean 'current'"),
        ("[contexts.lab]\nendpoint = ['a:1']", "did you mean 'endpoints'"),
        ("[contexts.lab]\nendpoints = 'a:1'", "must be a list"),
        ("current = 'lab'", "'lab' is not in"),
        ("current = ", "is not TOML"),
    ],
)
def test_a_wrong_configuration_says_where_and_what(text: str, told: str, tmp_path: Path) -> None:
    path = write_config(tmp_path, text)
    with pytest.raises(InvalidArgument, match=told) as raised:
        resolve(Options())
    assert str(path) in raised.value.message


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HypervisorError("x"), 1),
        (InvalidArgument("x"), 2),
        (NotFound("x"), 3),
        (AlreadyExists("x"), 4),
        (WrongState("x"), 4),
        (OperationRunning("x"), 4),
        (NoNodeFits("x"), 5),
        (PermissionDenied("x"), 6),
        (Unauthenticated("x"), 6),
        (Unavailable("x"), 7),
        (DeadlineExceeded("x"), 8),
    ],
)
def test_exit_codes_tell_kinds_of_failure_apart(error: LeewardError, code: int) -> None:
    assert exit_code_of(error) == code


def told_of(error: LeewardError, capsys: Capture) -> list[str]:
    report(error, Format.TABLE)
    return capsys.readouterr().err.splitlines()


def test_errors_say_why_and_what_next(capsys: Capture) -> None:
    reasons = [Violation("NODE", f"nodes/{node}", "has no room") for node in ("a", "b")]
    full = NoNodeFits("no node fits: nodes/a: has no room; nodes/b: has no room", violations=reasons)
    assert told_of(full, capsys)[:3] == ["Error: no node fits", "  nodes/a: has no room", "  nodes/b: has no room"]
    name = "operations/" + "a" * 26
    busy = told_of(OperationRunning("web-1 is being stopped", metadata={"operation": name}), capsys)
    assert f"leeward operation wait {name}" in busy[-1]
    state = told_of(WrongState("it is STOPPED", metadata={"allowed_states": "ACTIVE"}), capsys)
    assert "ACTIVE" in state[-1]
    gone = told_of(NotFound.named("projects/p/images/i"), capsys)
    assert "leeward image list" in gone[-1]
    lost = told_of(Unavailable("broke", metadata={"request_id": "r1", "endpoints": "a:1"}), capsys)
    assert "may have been carried out (request r1)" in lost[-1]


def test_sizes_and_durations_both_ways() -> None:
    assert parse_size("128M", field="memory", unit=MIB) == 128
    assert parse_size("1.5GiB", field="memory", unit=MIB) == 1536
    assert parse_size("2t", field="disk", unit=GIB) == 2048
    assert [parse_duration(text, field="x").total_seconds() for text in ("500ms", "30s", "2m", "1h", "7")] == [
        0.5,
        30,
        120,
        3600,
        7,
    ]
    assert [size_text(size) for size in (0, 512 * MIB, 1.5 * GIB)] == ["0 B", "512 MiB", "1.5 GiB"]
    assert [duration_text(s) for s in (0.045, 3.21, 320, 11_100)] == ["45 ms", "3.2 s", "5m 20s", "3h 5m"]
    assert [age_text(s) for s in (-1, 59, 60, 7200, 200_000)] == ["0s", "59s", "1m", "2h", "2d"]


def test_a_guest_cannot_command_the_terminal_of_who_reads_its_log() -> None:
    log = b"\x1b]0;owned\x07[\x1b[32m  OK  \x1b[0m] up\r\n\x1b[2J\x1b[999;1Htab\there\x08\x9b\x00 \xff"
    assert not set(plain_text(log)) & {chr(code) for code in (*range(9), *range(11, 32), 127, 0x9B)}
    assert "[  OK  ] up\n" in plain_text(log)
    assert "owned" not in plain_text(log)


@pytest.mark.parametrize(
    ("header", "format"),
    [(b"QFI\xfb\0\0\0\3", ImageFormat.QCOW2), (b"\xeb\x63\x90", ImageFormat.RAW), (b"", ImageFormat.RAW)],
)
def test_a_disk_format_is_read_from_the_header(header: bytes, format: ImageFormat, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(header)
    assert detect_format(tmp_path / "disk") is format


def test_foreign_files_do_not_pass_as_raw(tmp_path: Path) -> None:
    (tmp_path / "disk.vmdk").write_bytes(b"KDMV" + bytes(512))
    with pytest.raises(InvalidArgument, match="VMDK"):
        detect_format(tmp_path / "disk.vmdk")
    with pytest.raises(NotFound):
        detect_format(tmp_path / "missing")


def test_tables_and_descriptions_speak_plainly() -> None:
    instance = Instance(
        name="projects/default/instances/web-1",
        state=Instance.STATE_SHELVED_OFFLOADED,
        flavor="flavors/small",
        resources=InstanceResources(vcpus=2, memory_mib=512),
        labels={"env": "prod", "app": "web"},
    )
    instance.create_time.FromJsonString("2026-01-02T03:04:05.678Z")
    header, row = table_lines([instance], color=False)
    assert header.split() == ["NAME", "STATE", "NODE", "FLAVOR", "AGE"]
    assert row.split()[:4] == ["web-1", "SHELVED_OFFLOADED", "-", "small"]
    assert table_lines([instance], full_names=True, color=False)[1].startswith("projects/default/instances/web-1")
    lines = describe(instance)
    assert "state:       SHELVED_OFFLOADED" in lines
    assert "labels:      app=web, env=prod" in lines
    assert "create_time: 2026-01-02 03:04:05Z" in lines
    assert "  vcpus:      2" in lines
    node = Node(name="nodes/a", condition=Node.CONDITION_FENCED)
    assert table_lines([node], color=True)[1].startswith("a ")
    assert "\x1b[" in table_lines([node], color=True)[1]


def moment(step: str, *, phase: OperationPhase.ValueType, migration: MigrationProgress | None = None) -> object:
    metadata = OperationMetadata(
        type=OperationType.OPERATION_TYPE_LIVE_MIGRATE,
        instance="projects/default/instances/web-1",
        phase=phase,
        step=step,
        steps=[OperationStep(step="prepare")],
        migration=migration,
        target_node="nodes/host-b",
    )
    done = phase == OperationPhase.OPERATION_PHASE_SUCCEEDED
    return WatchOperationResponse(operation=Operation(name="operations/x", done=done), metadata=metadata)


def copying(remaining: int) -> MigrationProgress:
    return MigrationProgress(
        phase=MigrationPhase.MIGRATION_PHASE_COPYING,
        memory_total_bytes=512 * MIB,
        memory_remaining_bytes=remaining,
        throughput_bytes_per_second=100 * MIB,
        dirty_rate_bytes_per_second=8 * MIB,
        remaining=Duration(seconds=3),
        expected_downtime=Duration(nanos=45_000_000),
    )


def test_without_a_terminal_there_is_a_line_a_step_and_no_more(capsys: Capture) -> None:
    view, running = OperationLines(), OperationPhase.OPERATION_PHASE_RUNNING
    for remaining in (300, 200, 100):
        view.update(moment("migrate", phase=running, migration=copying(remaining)))
    view.update(moment("settle", phase=running))
    view.update(moment("settle", phase=OperationPhase.OPERATION_PHASE_SUCCEEDED))
    view.close()
    view.update(moment("later", phase=running))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "live-migrate web-1: migrate, to host-b, copying",
        "live-migrate web-1: settle, to host-b",
        "live-migrate web-1: done",
    ]


def test_a_live_migration_shows_its_figures() -> None:
    text = migration_text(copying(128 * MIB))
    for figure in ("128 MiB of 512 MiB left", "100 MiB/s", "dirtied at 8 MiB/s", "3.0 s to go", "still for 45 ms"):
        assert figure in text
    assert percent_of(OperationMetadata(percent=10, migration=copying(128 * MIB))) == 75
    assert percent_of(OperationMetadata(percent=10)) == 10


def test_a_plugin_that_cannot_be_loaded_fails_alone(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plugin: Callable[[str, str], None]
) -> None:
    plugin("broken", "leeward_no_such_module.commands:app")
    (tmp_path / "leeward_test_plugin.py").write_text(
        '"""`leeward hello`: say hello.\n\nMore."""\nimport typer\n'
        "def command(name: str, loud: bool = False) -> None:\n"
        '    """Say hello to NAME."""\n'
        "    typer.echo(name.upper() if loud else name)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin("hello", "leeward_test_plugin:command")
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "Say hello." in shown
    assert "Not installed" in shown
    assert "leeward_test_plugin" not in sys.modules
    assert run(["hello", "you", "--loud"]) == 0
    assert capsys.readouterr().out == "YOU\n"
    assert run(["broken"]) == 4
    assert "leeward_no_such_module" in capsys.readouterr().err


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Installs an entry point that announces a command."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, value: str) -> None:
        directory = tmp_path / f"{name}_plugin-1.dist-info"
        directory.mkdir()
        (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1\n")
        (directory / "entry_points.txt").write_text(f"[leeward.commands]\n{name} = {value}\n")

    return install
