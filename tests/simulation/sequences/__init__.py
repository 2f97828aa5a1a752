"""Random sequences of every operation, with failures, against a model made from the transition table."""
