"""A libvirt daemon for one host, configured for namespaces and starting with nothing of the machine's."""

import textwrap
from pathlib import Path

# Inside path -> directory below the host's own.
PRIVATE_DIRECTORIES = {
    "/etc/libvirt": "etc-libvirt",
    "/var/lib/libvirt": "var-lib-libvirt",
    "/var/log/libvirt": "var-log-libvirt",
    "/var/cache/libvirt": "var-cache-libvirt",
}

# Each was found by trying. Root and no owner changes, because the daemon's files are shared by bind mounts; no
# security driver, cgroups or mount namespaces, because a host here has none of its own; QEMU's output goes to files,
# because nobody runs virtlogd.
QEMU_CONF = """\
    user = "root"
    group = "root"
    dynamic_ownership = 0
    remember_owner = 0
    security_driver = "none"
    cgroup_controllers = []
    namespaces = []
    stdio_handler = "file"
    migration_address = "{address}"
    migration_host = "{hostname}"
"""

# libvirt refuses to migrate to a host with its own uuid or name. TCP without authentication stays within the
# cluster's bridge; it is there to compare native migration with the tunnel.
LIBVIRTD_CONF = """\
    host_uuid = "{host_uuid}"
    listen_tls = 0
    listen_tcp = 1
    listen_addr = "{address}"
    auth_tcp = "none"
    auth_unix_rw = "none"
    unix_sock_rw_perms = "0700"
    log_level = 3
"""

# libvirt looks its built-in user and group up before it reads that its configuration names others, and does not start
# without them; Debian makes them in a package that would also start a daemon on the machine.
_ACCOUNTS = {
    "passwd": "libvirt-qemu:x:64055:64055:Libvirt Qemu:/var/lib/libvirt:/usr/sbin/nologin",
    "group": "libvirt-qemu:x:64055:",
}


def write_configuration(host_directory: Path, *, host_uuid: str, hostname: str, address: str) -> None:
    """Make the private directories of a host's libvirt and write its configuration and accounts."""
    for name in PRIVATE_DIRECTORIES.values():
        (host_directory / name).mkdir(parents=True, exist_ok=True)
    configuration = host_directory / PRIVATE_DIRECTORIES["/etc/libvirt"]
    values = {"host_uuid": host_uuid, "hostname": hostname, "address": address}
    for name, template in (("qemu.conf", QEMU_CONF), ("libvirtd.conf", LIBVIRTD_CONF)):
        (configuration / name).write_text(textwrap.dedent(template).format(**values))
    for name, account in _ACCOUNTS.items():
        text = Path("/etc", name).read_text()
        known = any(line.startswith("libvirt-qemu:") for line in text.splitlines())
        (host_directory / name).write_text(text if known else f"{text}{account}\n")


def binds(host_directory: Path) -> dict[str, Path]:
    """What to mount where, for libvirt, inside the host."""
    files = {f"/etc/{name}": host_directory / name for name in _ACCOUNTS}
    return files | {inside: host_directory / name for inside, name in PRIVATE_DIRECTORIES.items()}
