"""The guard: a small process of its own that ends this host's guests when the agent can no longer vouch for them.

`main`, `kill`, `protocol`, `state` and `watchdog` import nothing but the standard library and each other.
"""
