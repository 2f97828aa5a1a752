"""What is raised when something did not happen as promised."""


class Untrue(Exception):
    """A promise that did not hold, in words."""


def check(holds: bool, what: str) -> None:
    """Raises Untrue with `what` unless it holds."""
    if not holds:
        raise Untrue(what)
