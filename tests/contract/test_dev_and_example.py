"""`leeward dev` as a client's author meets it: it is there at once, and the README's example works against it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_LEEWARD = str(Path(sys.executable).parent / "leeward")
_EXAMPLE = Path(__file__).parents[2] / "examples" / "launch_and_migrate.py"


@pytest.fixture
def endpoint() -> Iterator[str]:
    """A running `leeward dev`, on a port of its own."""
    process = subprocess.Popen([_LEEWARD, "dev", "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"127\.0\.0\.1:\d+", line)
        assert found, line
        yield found.group()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        process.stdout.close()


def test_neither_it_nor_the_simulated_demo_needs_what_only_hosts_need() -> None:
    """They are for machines without root, and without the libraries that talk to libvirt and make disks."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(('libvirt', 'pycdlib')))"
    code = f"{blocked}; import leeward_lab.dev, leeward_lab.demo.simulated"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_it_lists_nothing_at_first_and_what_was_created_then(endpoint: str) -> None:
    def leeward(*arguments: str) -> str:
        environment = {**os.environ, "LEEWARD_ENDPOINT": endpoint}
        done = subprocess.run(
            [_LEEWARD, *arguments], capture_output=True, text=True, timeout=30, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert json.loads(leeward("instance", "list", "-o", "json")) == []
    leeward("instance", "create", "web-1", "--image", "tiny", "--flavor", "small")
    (listed,) = json.loads(leeward("instance", "list", "-o", "json"))
    assert (listed["name"], listed["state"]) == ("projects/default/instances/web-1", "STATE_ACTIVE")


def test_the_example_launches_moves_and_deletes(endpoint: str) -> None:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(_EXAMPLE), endpoint], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert re.search(r"example-1 runs on nodes/host-", done.stdout)
    assert time.monotonic() - begun < 60


def test_the_simulated_demo_tells_its_story_to_the_end() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leeward_lab.demo", "--hypervisor", "simulated"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert done.stdout.splitlines()[-1].startswith("demo: ok hypervisor=simulated detect_s=")
