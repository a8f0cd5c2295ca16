"""`python -m hack.docs`: writes what the documentation shows of the code, between markers in the pages: pictures and tables that cannot lie.

Runs in `.venv`: reads imports by grimp, which import-linter brings along.
"""

from __future__ import annotations

import html
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grimp
import yaml
from finetune_api.outcome import ExitCode, Reason

from hack.environment import REPOSITORY

ARCHITECTURE = REPOSITORY / "docs" / "architecture.md"
REASONS = REPOSITORY / "docs" / "reasons.md"
CHART = REPOSITORY / "charts" / "finetune-operator"
PACKAGES = ("finetune_api", "finetune_operator", "finetune_trainer")
GROUND = "finetune_trainer.ground"
Edge = tuple[str, str]


def write_between_markers(page: Path, name: str, text: str) -> None:
    """Replaces what stands between `<!-- name -->` and `<!-- /name -->`. Errors: ValueError where a marker is missing."""
    before, opening, rest = page.read_text().partition(f"<!-- {name} -->\n")
    _, closing, after = rest.partition(f"<!-- /{name} -->")
    if not opening or not closing:
        raise ValueError(f"{page} has no markers {name}")
    page.write_text(f"{before}{opening}{text}{closing}{after}")


# --- the picture of what imports what --------------------------------------------------------------------------------


def floors(package: str) -> list[list[str]]:
    """The floors of a package, top first, as import-linter holds them."""
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract.get("containers") == [package])
    return [[module.strip() for module in layer.replace("|", ":").split(":")] for layer in layers]


def box_of(module: str) -> str:
    """The box of the picture that a module is in: its folder, and for the trainer's lowest floor one box for all."""
    package, _, rest = module.partition(".")
    part = rest.partition(".")[0]
    if package == "finetune_api" or not part:
        return package
    return GROUND if package == "finetune_trainer" and part in floors(package)[-1] else f"{package}.{part}"


def imports() -> set[Edge]:
    """(importer, imported) between boxes, without what follows from others."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True)
    edges = {(box_of(module), box_of(imported)) for module in graph.modules for imported in graph.find_modules_directly_imported_by(module)}
    direct = {edge for edge in edges if edge[0] != edge[1]}
    return {edge for edge in direct if not _follows(edge, direct)}


def _follows(edge: Edge, edges: set[Edge]) -> bool:
    """Whether another way leads from one end to the other."""
    start, end = edge
    seen, open_ends = set[str](), {after for before, after in edges if before == start and after != end}
    while open_ends:
        seen |= open_ends
        open_ends = {after for before, after in edges if before in open_ends} - seen
    return end in seen


def picture() -> str:
    """The imports as a Mermaid flow chart, a subgraph each for operator and trainer."""
    edges = sorted(imports())
    boxes = sorted({box for edge in edges for box in edge})
    lines = ["```mermaid", "flowchart TD"]
    for package in PACKAGES[1:]:
        lines.append(f"  subgraph {package}")
        lines += [f'    {box}["{box.partition(".")[2]}"]' for box in boxes if box.startswith(f"{package}.")]
        lines.append("  end")
    lines += [f"  {before} --> {after}" for before, after in edges]
    return "\n".join([*lines, "```", ""])


# --- the chart's values ----------------------------------------------------------------------------------------------


def described(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, description) of every value that has a description of its own."""
    for name, member in schema.get("properties", {}).items():
        if description := member.get("description"):
            yield f"{path}{name}", description
        yield from described(member, f"{path}{name}.")


def values_table() -> str:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    rows = [(name, text, _default(values, name)) for name, text in described(schema) if name != "global"]
    return "| value | default | what it is |\n| --- | --- | --- |\n" + "".join(
        f"| `{name}` | `{json.dumps(default)}` | {text} |\n" for name, text, default in rows
    )


def _default(values: Any, name: str) -> Any:
    for part in name.split("."):
        values = values[part]
    return values


# --- the reasons -----------------------------------------------------------------------------------------------------


def reasons_table(*, of_stages: bool) -> str:
    """The reasons that end a stage with an exit code, or the others, by name."""
    chosen = sorted(reason for reason in Reason if reason.ends_a_stage == of_stages)
    columns = ["reason", "what it means", "what to do", "another attempt", *(["exit code"] if of_stages else [])]
    return _table(columns, [_reason_cells(reason) for reason in chosen])


def _reason_cells(reason: Reason) -> list[str]:
    code = [str(int(reason.exit_code))] if reason.ends_a_stage else []
    return [f"`{reason}`", reason.sentence, reason.cure, reason.retry or "", *code]


def exit_codes_table() -> str:
    return _table(["exit code", "name", "another attempt"], [[str(int(code)), f"`{code.name}`", code.retry] for code in ExitCode])


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([html.escape(cell, quote=False) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    write_between_markers(ARCHITECTURE, "imports", picture())
    write_between_markers(CHART / "README.md", "values", values_table())
    write_between_markers(REASONS, "reasons of stages", reasons_table(of_stages=True))
    write_between_markers(REASONS, "other reasons", reasons_table(of_stages=False))
    write_between_markers(REASONS, "exit codes", exit_codes_table())
