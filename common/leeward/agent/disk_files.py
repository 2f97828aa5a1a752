"""The names of the files in a guest's folder in a pool, as inventories tell them."""

ROOT_DISK = "root.qcow2"
KEPT_ROOT_DISK = "root.before-resize.qcow2"  # What a resize keeps until it is confirmed or reverted.
RESCUE_DISK = "rescue.qcow2"  # What an instance in rescue boots from.
MEMORY_FILE = "memory.save"  # The memory of a suspended guest.
SEED_DISK = "seed.iso"  # What cloud-init reads at the first boot.
