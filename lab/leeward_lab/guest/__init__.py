"""The laboratory's guest: a bootable disk small enough to be built in seconds and started by the dozen."""
