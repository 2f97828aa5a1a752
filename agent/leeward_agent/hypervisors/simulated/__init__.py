"""Guests that only exist in memory, on any clock: for tests, simulation, and a demonstration without root."""
