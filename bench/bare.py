"""One live migration by libvirt alone, inside a host: `python -m bench.bare DOMAIN LIBVIRT_URI MEMORY_URI MIB_PER_S`.

The same flags and parameters as Leeward's agent gives, in a bare call of libvirt's API. Prints the seconds that the
call took and nothing else. MEMORY_URI `-` leaves it to libvirt (TCP); MIB_PER_S 0 is no limit.
"""

import sys
import time

import libvirt

_FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_UNSAFE
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
    | libvirt.VIR_MIGRATE_AUTO_CONVERGE
)


def main() -> None:
    """Migrate, and say how long it took."""
    name, libvirt_uri, memory_uri, bandwidth = sys.argv[1:]
    connection = libvirt.open("qemu:///system")
    domain = connection.lookupByName(name)
    parameters: dict[str, object] = {}
    if memory_uri != "-":
        parameters[libvirt.VIR_MIGRATE_PARAM_URI] = memory_uri
    if int(bandwidth):
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = int(bandwidth)
    domain.migrateSetMaxDowntime(300)
    began = time.perf_counter()
    domain.migrateToURI3(libvirt_uri, parameters, _FLAGS)
    sys.stdout.write(f"{time.perf_counter() - began:.6f}\n")
    connection.close()


if __name__ == "__main__":
    main()
