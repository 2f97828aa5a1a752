"""Leeward: virtual machines on a cluster of ordinary libvirt/QEMU hosts, kept running."""

__version__ = "0.1.0"
