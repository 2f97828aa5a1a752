"""What the contract promises and this version has not built, in one list. Each answers UNIMPLEMENTED with a reason."""

UNIMPLEMENTED: dict[str, tuple[str, ...]] = {}
