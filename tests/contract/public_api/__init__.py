"""What clients of the public API are promised: the real server, real controllers, simulated hosts."""
