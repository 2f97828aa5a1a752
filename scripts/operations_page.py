"""Writes docs/operations.md from the transition table; with --check, tells whether it is up to date.

The page is never edited by hand: what it says is what the controllers enforce.
"""

import argparse
import sys
from pathlib import Path

from leeward_controller.domain.instance import InstanceState
from leeward_controller.domain.operation import OperationType
from leeward_controller.domain.transitions import SOFT_REBOOT_FROM, TABLE, Rule

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operations.md"

_STATES = [state for state in InstanceState if state is not InstanceState.DELETED]
_LEFT_OUT = frozenset({OperationType.EVACUATE, OperationType.DELETE, OperationType.UNDELETE, OperationType.REBOOT})


def page() -> str:
    """The whole page."""
    return "\n".join([*_head(), *_rows(), *_diagram(), *_matrix(), ""])


def _head() -> list[str]:
    return [
        "# What can be done to an instance",
        "",
        "Made by `make docs` from the transition table in `controller/leeward_controller/domain/transitions.py`,",
        "the only place that decides what is allowed. From another state a call is refused with FAILED_PRECONDITION,",
        "reason WRONG_STATE, with the current state and the allowed ones. A second changing call while one is running",
        "is refused with ABORTED, reason OPERATION_RUNNING and the running operation's name, unless it may interrupt.",
        "",
        "## The table",
        "",
        "| action | from | to | interrupts | refused while locked | needs a node | promise |",
        "|---|---|---|---|---|---|---|",
    ]


def _rows() -> list[str]:
    return [
        f"| {action} | {_sources(rule)} | {_targets(rule)} | {_interrupts(rule)} | {_yes(rule.lock_checked)} "
        f"| {_yes(rule.needs_node)} | {rule.promise} |"
        for action, rule in TABLE.items()
    ]


def _sources(rule: Rule) -> str:
    return "any" if rule.allowed_from == frozenset(_STATES) else " ".join(_ordered(rule.allowed_from))


def _targets(rule: Rule) -> str:
    if all(targets == frozenset({source}) for source, targets in rule.leads_to.items()):
        return "unchanged"
    return " ".join(_ordered(frozenset().union(*rule.leads_to.values())))


def _interrupts(rule: Rule) -> str:
    if not rule.interrupts:
        return "no"
    spared = [kind for kind in OperationType if kind not in rule.interrupts]
    return "all but " + " ".join(spared) if spared else "all"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _ordered(states: frozenset[InstanceState]) -> list[str]:
    return [state.value for state in InstanceState if state in states]


def _diagram() -> list[str]:
    """The states and what leads from one to another.

    What is possible from nearly everywhere is said in words, so that the drawing stays readable.
    """
    labels: dict[tuple[str, str], list[str]] = {}
    for action, rule in TABLE.items():
        if action in _LEFT_OUT:
            continue
        for source, targets in rule.leads_to.items():
            for target in _ordered(targets - {source}):
                labels.setdefault((source.value, target), []).append(action.value)
    edges = [f"    {source} --> {target}: {', '.join(names)}" for (source, target), names in labels.items()]
    return [
        "",
        "## The states",
        "",
        "Besides what is drawn: DELETE is possible from every state, to SOFT_DELETED or for good, and UNDELETE goes",
        "back; a hard REBOOT leads to ACTIVE from "
        + ", ".join(_ordered(TABLE[OperationType.REBOOT].allowed_from))
        + f" (a soft one is for {', '.join(_ordered(SOFT_REBOOT_FROM))}); EVACUATE keeps the state.",
        "An operation that fails leaves the state that was there before, except CREATE, which leaves ERROR.",
        "",
        "```mermaid",
        "stateDiagram-v2",
        "    [*] --> BUILDING",
        *edges,
        "```",
    ]


def _matrix() -> list[str]:
    """Every pair: what the state becomes, or nothing where it is refused."""
    lines = [
        "",
        "## Every pair",
        "",
        "What each action leads to from each state: `=` unchanged, empty: refused.",
        "",
        "| action | " + " | ".join(_STATES) + " |",
        "|---|" + "---|" * len(_STATES),
    ]
    for action, rule in TABLE.items():
        cells = [_cell(rule, state) for state in _STATES]
        lines.append(f"| {action} | " + " | ".join(cells) + " |")
    return lines


def _cell(rule: Rule, state: InstanceState) -> str:
    targets = rule.leads_to.get(state, frozenset())
    return "=" if targets == frozenset({state}) else " ".join(_ordered(targets))


def main() -> int:
    """Write the page, or compare it. 0 when it is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only tell whether the page is up to date")
    wanted, check = page(), parser.parse_args().check
    if not check:
        PAGE.write_text(wanted)
        return 0
    if PAGE.exists() and PAGE.read_text() == wanted:
        print("docs/operations.md: matches the table")
        return 0
    print("docs/operations.md differs from the transition table; run `make docs`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
