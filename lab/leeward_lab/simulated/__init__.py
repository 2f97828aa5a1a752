"""A whole cluster in one process: real controllers and agents over simulated hosts, an in-memory store and pool.

On the machine's clock it is `leeward dev`; on a virtual one it is the simulation.
"""
