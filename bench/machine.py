"""What the figures were taken on."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import grpc


def describe() -> dict[str, Any]:
    """The machine and the versions that matter, with the load it is under before anything begins."""
    return {
        "processor": _first("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory_gib": round(int(_first("/proc/meminfo", "MemTotal").split()[0]) / 2**20, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "etcd": _version(["etcd", "--version"]),
        "qemu": _version(["qemu-system-x86_64", "--version"]),
        "libvirt": _version(["libvirtd", "--version"]),
        "load_before": round(os.getloadavg()[0], 2),
    }


def one_line(machine: dict[str, Any]) -> str:
    """The same for people."""
    return (
        f"{machine['cores']} × {machine['processor']}, {machine['memory_gib']:g} GiB, Linux {machine['kernel']}, "
        f"Python {machine['python']}, grpcio {machine['grpcio']}, {machine['etcd']}; {machine['qemu']}; "
        f"{machine['libvirt']}; load {machine['load_before']:g} before, {os.getloadavg()[0]:.2f} after"
    )


def _first(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "0 unknown"


def _version(command: list[str]) -> str:
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return f"no {command[0]}"
    return told.stdout.splitlines()[0].strip() if told.stdout else command[0]
