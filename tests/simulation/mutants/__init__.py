"""Sabotage of single lines, to see that the simulation notices: `python -m tests.simulation.mutants`."""
