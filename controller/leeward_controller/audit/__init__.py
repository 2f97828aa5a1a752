"""Comparing what is recorded with what is there: pure findings, and the repairs that mend them."""
