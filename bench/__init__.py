"""Benchmarks: `python -m bench`. docs/benchmarks.md says what each one measures, and how."""
