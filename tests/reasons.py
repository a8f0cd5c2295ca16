"""Where the sources name reasons: read from their syntax, for tests that compare this with the table."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from finetune_api.outcome import Reason

REPOSITORY = Path(__file__).parent.parent
OPERATOR, TRAINER = REPOSITORY / "operator" / "finetune_operator", REPOSITORY / "trainer" / "finetune_trainer"


def nodes(*roots: Path) -> Iterator[tuple[str, ast.AST]]:
    """Every node of every module at or below `roots`, and where it stands: `folder/module.py:line`."""
    for root in roots:
        for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            for node in ast.walk(_parsed(path)):
                yield f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 0)}", node


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def reason_of(node: ast.AST) -> Reason | None:
    """The reason that `Reason.X` names."""
    named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason"
    return Reason[node.attr] if named and isinstance(node, ast.Attribute) and node.attr in Reason.__members__ else None


def reasons_named(*roots: Path) -> set[Reason]:
    return {reason for _, node in nodes(*roots) if (reason := reason_of(node))}
