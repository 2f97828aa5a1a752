"""The in-memory twin of the store, for tests and simulation."""

from leeward.store.memory.store import MemoryStore

__all__ = ["MemoryStore"]
