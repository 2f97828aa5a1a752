"""Real etcd members for tests: started on loopback, stopped, paused, killed and started again, and always gone after.

Each cluster has loopback addresses of its own, so that its ports collide with nobody's. The members die with the thread
that started them (`PR_SET_PDEATHSIG`, through setpriv), so that a killed test run leaves none behind.
"""

import http.client
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.05
_START_S = 20.0
_STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What the members show to clients, and whom they trust. Clients then need a certificate too."""

    ca: Path
    cert: Path
    key: Path


class EtcdMember:
    """One etcd process and its data, which outlives the process."""

    def __init__(self, name: str, host: str, directory: Path, *, tls: ServerTls | None, options: Sequence[str]) -> None:
        self.name = name
        self.host = host
        self._bracketed = f"[{host}]" if ":" in host else host
        self.client_port, self.peer_port, self._metrics_port = _free_ports(host, 3)
        self._directory = directory
        self._tls = tls
        self._options = tuple(options)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """`host:port` for clients."""
        return f"{self._bracketed}:{self.client_port}"

    @property
    def peer_url(self) -> str:
        """Where the other members find it."""
        return f"http://{self._bracketed}:{self.peer_port}"

    def start(self, peers: Sequence["EtcdMember"]) -> None:
        """Start the process; it is not ready yet."""
        client_url = f"{'https' if self._tls else 'http'}://{self.endpoint}"
        command = [
            "setpriv", "--pdeathsig", "KILL", "--",
            "etcd", "--name", self.name, "--data-dir", str(self._directory / self.name),
            "--listen-client-urls", client_url, "--advertise-client-urls", client_url,
            "--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url,
            "--initial-cluster", ",".join(f"{peer.name}={peer.peer_url}" for peer in peers),
            "--initial-cluster-token", self._directory.name,
            "--listen-metrics-urls", f"http://{self._bracketed}:{self._metrics_port}",
            "--experimental-watch-progress-notify-interval", "1s",
            "--unsafe-no-fsync", "--log-level", "warn", "--logger", "zap",
            *self._options,
        ]  # fmt: skip
        if self._tls:
            command += ["--cert-file", str(self._tls.cert), "--key-file", str(self._tls.key)]
            command += ["--trusted-ca-file", str(self._tls.ca), "--client-cert-auth"]
        with (self._directory / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def pause(self) -> None:
        """SIGSTOP, and wait until it has stopped: connections stay, and nothing answers."""
        self._signal(signal.SIGSTOP)
        give_up_at = time.monotonic() + _STOP_S
        while not self._is_stopped():
            if time.monotonic() > give_up_at:
                raise RuntimeError(f"{self.name} did not stop within {_STOP_S} s")
            time.sleep(0.001)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def is_healthy(self) -> bool:
        """Whether it runs, knows a leader, and can commit."""
        return '"true"' in self._get("/health")

    def is_leader(self) -> bool:
        """Whether it takes itself for the leader."""
        return "\netcd_server_is_leader 1\n" in self._get("/metrics")

    def log_text(self) -> str:
        """What it has said so far."""
        return (self._directory / f"{self.name}.log").read_text(errors="replace")

    def has_exited(self) -> bool:
        """Whether the process has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def _is_stopped(self) -> bool:
        if self._process is None:
            return False
        threads = Path(f"/proc/{self._process.pid}/task").glob("*/stat")
        # The state is the first word after the program's name, which is in parentheses (proc(5)).
        return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        self._process.send_signal(number)

    def _get(self, path: str) -> str:
        connection = http.client.HTTPConnection(self.host, self._metrics_port, timeout=1.0)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return ""
        finally:
            connection.close()


class EtcdCluster:
    """Members that know each other. Use `etcd_cluster`, which also ends them."""

    def __init__(
        self, directory: Path, *, members: int, tls: ServerTls | None, options: Sequence[str], host: str | None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        network = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}"
        self.members = tuple(
            EtcdMember(f"etcd{n}", host or f"{network}.{n}", directory, tls=tls, options=options)
            for n in range(1, members + 1)
        )

    @property
    def endpoints(self) -> list[str]:
        """All members' `host:port`."""
        return [member.endpoint for member in self.members]

    def start(self) -> None:
        """Start all members and wait until each can serve."""
        for member in self.members:
            member.start(self.members)
        self.wait_until_healthy()

    def restart(self, member: EtcdMember) -> None:
        """Start a killed member again with its data; it is not ready yet."""
        member.start(self.members)

    def wait_until_healthy(self) -> None:
        """Return when every member can serve."""
        self._wait(lambda: all(member.is_healthy() for member in self.members), "all members are healthy")

    def leader(self) -> EtcdMember:
        """The member that leads, waiting until there is one."""
        self._wait(lambda: any(member.is_leader() for member in self.members), "there is a leader")
        return next(member for member in self.members if member.is_leader())

    def stop(self) -> None:
        """Kill all members, paused ones too."""
        for member in self.members:
            member.kill()

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        give_up_at = time.monotonic() + _START_S
        while not condition():
            exited = next((member for member in self.members if member.has_exited()), None)
            if exited is not None or time.monotonic() > give_up_at:
                told = "\n".join(member.log_text()[-2000:] for member in self.members)
                raise RuntimeError(f"etcd: not true within {_START_S} s: {what}\n{told}")
            time.sleep(_POLL_S)


@contextmanager
def etcd_cluster(
    directory: Path,
    *,
    members: int = 1,
    tls: ServerTls | None = None,
    options: Sequence[str] = (),
    host: str | None = None,
) -> Iterator[EtcdCluster]:
    """A running cluster with its data below `directory`, gone when the block ends however it ends.

    `host` puts a single member on a given loopback address.
    """
    cluster = EtcdCluster(directory, members=members, tls=tls, options=options, host=host)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _free_ports(host: str, count: int) -> list[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sockets = [socket.socket(family) for _ in range(count)]
    try:
        for each in sockets:
            each.bind((host, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
