"""Run all tests: those on clusters of real hosts, and beside them, at lower priority, those that need no such cluster.

    python scripts/run_tests.py [pytest's options]

A test on real hosts waits most of its time: for guests that boot, for leases that end. What needs no cluster, measures
no time and kills nobody's programs fills these gaps. Its output comes when it is done. The exit status is that of the
group that failed.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BESIDE = (
    "tests/hosts/test_agent_migration.py",
    "tests/unit",
    "tests/simulation",
    "tests/scenarios",
    "tests/contract/public_api",
    *(f"tests/contract/test_{name}.py" for name in ("cli_admin", "cli_api", "cli_backups", "cli_instances")),
    *(f"tests/contract/test_{name}.py" for name in ("agent_api", "agent_client", "agent_states", "agent_tunnel")),
    *(f"tests/contract/test_{name}.py" for name in ("etcd_access", "mutual_tls")),
    *(
        f"tests/contract/test_{name}.py"
        for name in ("client", "group_commit", "pool", "pool_disks", "pool_files", "store")
    ),
    *(f"tests/contract/test_{name}.py" for name in ("hypervisor", "hypervisor_migration", "hypervisor_states")),
)
_NICE = 5
_TELLING = ("--durations=20", "--durations-min=5")
_PASSED = 0
_NOTHING_CHOSEN = 5


def main(options: list[str]) -> int:
    """Both groups' worst exit status."""
    with tempfile.TemporaryFile() as output:
        beside = _start([*BESIDE, *_TELLING, *options], nice=_NICE, output=output.fileno())
        hosts = _start(["tests", *(f"--ignore={path}" for path in BESIDE), *_TELLING, *options], nice=0, output=None)
        groups = (hosts, beside)
        signal.signal(signal.SIGTERM, lambda *_: _interrupt(groups))
        # A Ctrl-C reaches the groups by itself; both then clean up what their tests have begun.
        signal.signal(signal.SIGINT, lambda *_: None)
        statuses = {group.wait() for group in groups}
        output.seek(0)
        sys.stdout.flush()
        sys.stdout.buffer.write(output.read())
    failed = statuses - {_PASSED, _NOTHING_CHOSEN}
    if failed:
        return max(failed, key=abs)
    return _PASSED if _PASSED in statuses else _NOTHING_CHOSEN


def _interrupt(groups: tuple[subprocess.Popen[bytes], ...]) -> None:
    for group in groups:
        group.send_signal(signal.SIGINT)


def _start(arguments: list[str], *, nice: int, output: int | None) -> subprocess.Popen[bytes]:
    def prepare() -> None:
        os.nice(nice)
        # A shell that runs this in the background has switched it off, and tests press Ctrl-C.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *arguments], cwd=ROOT, stdout=output, stderr=output, preexec_fn=prepare
    )


if __name__ == "__main__":
    missing = [path for path in BESIDE if not (ROOT / path).exists()]
    if missing:
        sys.exit(f"{Path(__file__).name} names tests that are not there: {', '.join(missing)}")
    sys.exit(main(sys.argv[1:]))
