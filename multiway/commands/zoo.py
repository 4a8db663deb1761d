"""multiway zoo: the models that come with multiway."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from multiway import api
from multiway.commands.common import JsonOption, count_parameters, print_json, short_number
from multiway.specs import MultiwayError, Spec
from multiway.specs.config import Config
from multiway.specs.errors import nearest, one_of
from multiway.zoo import Entry, catalogue


def command(
    pattern: Annotated[str, typer.Argument(help="A glob, or how the names begin.")] = "*",
    head: Annotated[
        str | None, typer.Option(help="Only models with this head, or head kind.")
    ] = None,
    wiring: Annotated[str | None, typer.Option(help="Only models with this wiring.")] = None,
    routing: Annotated[
        str | None, typer.Option(help="Only models with this routing: none, modality.")
    ] = None,
    max_params: Annotated[
        str | None, typer.Option(help="Only models with at most so many parameters, e.g. 300M.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the zoo, filtered by name, head, wiring, routing and size."""
    zoo = catalogue()
    entries = zoo.matching(pattern)
    if not entries:
        raise MultiwayError.one(
            "unknown-spec",
            f"no entry of the zoo is named like {pattern!r}",
            place="zoo",
            expected=one_of(zoo.names),
            nearest=nearest(pattern, zoo.names),
        )
    limit = parse_count(max_params) if max_params else None
    rows = [
        row
        for row in map(describe, entries)
        if (head is None or head in row["heads"] or head in row["heads"].values())
        and (wiring is None or row["wiring"] == wiring)
        and (routing is None or routing in (row["routing"] or ["none"]))
        and (limit is None or min(row["parameters"].values()) <= limit)
    ]
    if as_json:
        print_json(rows)
    else:
        typer.echo(table(rows) if rows else "no entry fits")


def parse_count(text: str) -> float:
    """`300M` as a number. Raises MultiwayError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMbBgG]?)", text.strip())
    if match is None:
        raise MultiwayError.one(
            "wrong-type", f"{text!r} is not a number", place="--max-params", expected="e.g. 300M"
        )
    factor = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}[match[2].lower()]
    return float(match[1]) * factor


def describe(entry: Entry) -> dict[str, Any]:
    """An entry as plain data. `parameters` are counted for each head."""
    spec = api.load(entry.name)
    return {
        "name": entry.name,
        "family": entry.family,
        "parameters": {head: count_parameters(spec, head) for head in spec.heads},
        "heads": {name: getattr(head, "kind", "") for name, head in spec.heads.items()},
        "wiring": spec.wiring.use,
        "routing": routes(spec),
        **entry.card,
        "cite": spec.tree["cite"].plain() if spec.tree.get("cite") else [],
    }


def routes(spec: Spec) -> list[str]:
    """The routings that any part of any block uses."""
    found: set[str] = set()

    def walk(value: object) -> None:
        if isinstance(value, Config):
            for name, child in vars(value).items():
                if name == "experts" and child is not None:
                    found.add(child.route)
                walk(child)

    for block in dict.fromkeys(spec.blocks):
        walk(block)
    return sorted(found)


def table(rows: list[dict[str, Any]]) -> str:
    """Entries as aligned text; the heads of an entry may differ in size."""
    cells = [("name", "parameters", "wiring", "routing", "heads")]
    for row in rows:
        counts = row["parameters"].values()
        low, high = (short_number(n, giga="B") for n in (min(counts), max(counts)))
        cells.append(
            (
                row["name"],
                low if low == high else f"{low} to {high}",
                row["wiring"] or "own",
                ", ".join(row["routing"]) or "none",
                ", ".join(row["heads"]),
            )
        )
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join(lines)
