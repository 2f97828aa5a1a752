"""One sabotage: which lines of the product it replaces, and what should notice."""

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType


class Outdated(Exception):
    """The line to be sabotaged is not there, or not alone: the product has changed, and the mutant has to follow."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A line of a module, and what stands there instead. `within` is a line that the first such line follows."""

    module: str
    line: str
    instead: str
    within: str = ""

    def applied(self, source: str) -> str:
        """The source with the line replaced, indented as it was. Raises Outdated."""
        lines = source.splitlines()
        begin = 0
        if self.within:
            begin = self._only(lines, self.within, 0) + 1
        found = self._first(lines, begin) if self.within else self._only(lines, self.line, 0)
        indent = lines[found][: len(lines[found]) - len(lines[found].lstrip())]
        lines[found] = indent + self.instead
        return "\n".join(lines) + "\n"

    def _only(self, lines: Sequence[str], wanted: str, begin: int) -> int:
        found = [number for number, line in enumerate(lines) if number >= begin and line.strip() == wanted]
        if len(found) != 1:
            raise Outdated(f"{self.module} has {len(found)} lines that say {wanted!r}, not one")
        return found[0]

    def _first(self, lines: Sequence[str], begin: int) -> int:
        found = next((n for n in range(begin, len(lines)) if lines[n].strip() == self.line), None)
        if found is None:
            raise Outdated(f"{self.module} has no line after {self.within!r} that says {self.line!r}")
        return found


@dataclass(frozen=True, slots=True)
class Mutant:
    """A sabotage in words and in lines.

    It is to be noticed by one of the first `seeds` seeds of the swarm, or by the story of that name in
    `tests.simulation.mutants.stories`, which tells of something too rare to wait for. One with `harmless` is kept as
    knowledge: another net holds whatever falls through, and the text says which. It is run like the others, and must
    not be noticed.
    """

    name: str
    sabotages: str
    edits: tuple[Edit, ...]
    seeds: int = 60
    story: str = ""
    harmless: str = ""

    def install(self) -> None:
        """Have the edited modules loaded instead of the real ones. None of them may be loaded yet. Raises Outdated."""
        finder = _Finder(self.edits)
        for edit in self.edits:
            assert edit.module not in sys.modules, f"{edit.module} is loaded already"
            finder.check(edit.module)
        sys.meta_path.insert(0, finder)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = edits

    def check(self, module: str) -> None:
        """Raises Outdated unless all edits fit."""
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise Outdated(f"there is no module {module}")
        source = Path(spec.origin).read_text(encoding="utf-8")
        for edit in self._edits:
            if edit.module == module:
                source = edit.applied(source)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        edits = tuple(edit for edit in self._edits if edit.module == fullname)
        if not edits:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin, edits)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, fullname: str, path: str, edits: Sequence[Edit]) -> None:
        super().__init__(fullname, path)
        self._edits = edits

    def get_code(self, fullname: str) -> CodeType:
        """Compiled from the edited text, past any cache."""
        source = Path(self.path).read_text(encoding="utf-8")
        for edit in self._edits:
            source = edit.applied(source)
        return compile(source, self.path, "exec", dont_inherit=True)
