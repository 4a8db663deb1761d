"""multiway zoo: the models that come with multiway."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from typing import Annotated, Any

import typer

from multiway import api
from multiway.cards import describe, difference, find, sentence, summary
from multiway.commands.common import JsonOption, print_json, short_number
from multiway.specs import MultiwayError
from multiway.specs.errors import nearest, one_of
from multiway.specs.language.fields import kinds_in
from multiway.specs.language.routing import Routing
from multiway.zoo import Entry, catalogue

MIN_WIDTH = 20  # of a last column that goes on in further lines
_ROUTES = kinds_in(Routing)
ROUTES = ("none", *(_ROUTES.classes if _ROUTES else ()))


def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATTERN] | show NAME | diff A B",
            help="List entries (a glob, or how names begin), show one, or compare two specs.",
        ),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="Only models with this head or head kind; diff: the head.")
    ] = None,
    wiring: Annotated[str | None, typer.Option(help="Only models with this wiring.")] = None,
    routing: Annotated[
        str | None, typer.Option(help=f"Only models with this routing: {', '.join(ROUTES)}.")
    ] = None,
    max_params: Annotated[
        str | None, typer.Option(help="Only models with at most so many parameters, e.g. 300M.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the zoo, filtered by name, head, wiring, routing and size; show and compare entries."""
    match [] if words == ["show"] else words or []:
        case ["show", name] if name not in catalogue().entries:
            entries = find(name)
            rows = [summary(each) for each in entries]
            if as_json:
                print_json(rows)
            else:
                typer.echo(f"{family_card(entries[0])}\n\n{table(rows)}")
        case ["show", name]:
            entry = describe(catalogue().entries[name])
            print_json(entry) if as_json else typer.echo(card(entry))
        case ["diff", a, b]:
            first, second = api.load(a), api.load(b)
            if head is not None:
                head = second.pick(first.pick(head))
            found = difference(first, second, head)
            print_json(found) if as_json else typer.echo(comparison(a, b, found))
        case [] | [_] as given:
            rows = listed(given[0] if given else "*", head, wiring, routing, max_params)
            if as_json:
                print_json(rows)
                return
            if not given and wiring is None:
                rows = folded(rows)
            typer.echo(table(rows) if rows else "no entry fits")
        case other:
            raise MultiwayError.one(
                "usage",
                f"cannot read {' '.join(other)!r}",
                place="zoo",
                expected="zoo [PATTERN], zoo show NAME, or zoo diff A B",
            )


def family_card(entry: Entry) -> str:
    """What holds for all of a family, for reading."""
    facts = [name for name in ("paper", "licence", "code") if name in entry.card]
    return "\n".join([entry.family, *(f"  {name + ':':<9} {entry.card[name]}" for name in facts)])


def listed(
    pattern: str,
    head: str | None,
    wiring: str | None,
    routing: str | None,
    max_params: str | None,
) -> list[dict[str, Any]]:
    """The entries that fit. Raises MultiwayError where no name fits the pattern."""
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
    return [
        row
        for row in map(summary, entries)
        if (head is None or head in row["heads"] or head in row["heads"].values())
        and (wiring is None or row["wiring"] == wiring)
        and (routing is None or routing in (row["routing"] or ["none"]))
        and (limit is None or min(row["parameters"].values()) <= limit)
    ]


def folded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sizes of a variant as one row, `hc-*`; other entries as they are."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        whole = row["variant"] is None
        key = (row["family"], row["name"] if whole else f"{row['variant']}-*")
        first = found.setdefault(key, {**row, "name": key[1], "parameters": {}})
        for head, count in row["parameters"].items():
            first["parameters"][f"{row['name']} {head}"] = count
    return list(found.values())


def parse_count(text: str) -> float:
    """`300M` as a number. Raises MultiwayError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMbBgG]?)", text.strip())
    if match is None:
        raise MultiwayError.one(
            "wrong-type", f"{text!r} is not a number", place="--max-params", expected="e.g. 300M"
        )
    factor = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}[match[2].lower()]
    return float(match[1]) * factor


def columns(rows: list[tuple[str, ...]], limit: int | None = None) -> str:
    """Rows as aligned text. limit: columns of the terminal, if it goes to one: the last cell of a
    row then goes on in further lines under itself, between its words."""
    if limit is None and sys.stdout.isatty():
        limit = shutil.get_terminal_size().columns
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = sum(width + 2 for width in widths[:-1])
    lines = []
    for *cells, last in rows:
        start = "".join(f"{cell:<{width}}  " for cell, width in zip(cells, widths, strict=False))
        room = max((limit or left + widths[-1]) - left, MIN_WIDTH)
        parts = textwrap.wrap(last, room, break_long_words=False, break_on_hyphens=False) or [""]
        lines += [f"{start}{parts[0]}".rstrip(), *(f"{'':<{left}}{part}" for part in parts[1:])]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    """Entries, one a line; the heads of an entry may differ in size."""
    cells: list[tuple[str, ...]] = [("name", "parameters", "wiring", "routing", "heads")]
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
    return columns(cells)


def card(entry: dict[str, Any]) -> str:
    """An entry for reading."""
    lines = [entry["name"] + (f": {entry['doc']}" if entry["doc"] else "")]
    for name in ("family", "from", "paper", "cite", "licence", "code", "wiring", "routing", "dims"):
        if name not in entry:
            continue
        value = entry[name]
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number}" for key, number in value.items())
        elif isinstance(value, list):
            value = ", ".join(value) or "none"
        lines.append(f"  {name + ':':<9} {value}")
    lines.append(f"  weights:  {_weights(entry['weights'])}")
    rows: list[tuple[str, ...]] = [
        ("  head", "kind", "parameters", "active", "wiring", "FLOPs", "of")
    ]
    for name, head in entry["heads"].items():
        unit = "token" if "flops_per_token" in head else "example"
        sizes = ", ".join(f"{k}={v}" for k, v in sorted(head["sizes"].items()))
        rows.append(
            (
                f"  {name}",
                head["kind"],
                f"{head['parameters']:,}",
                f"{head['active_parameters']:,}",
                f"{head['wiring_share']:.2%}",
                short_number(head[f"flops_per_{unit}"]),
                f"one {unit} ({sizes})",
            )
        )
    return "\n".join([*lines, "", columns(rows)])


def _weights(weights: dict[str, Any] | str | None) -> str:
    if weights is None:
        return "none released"
    if isinstance(weights, str):
        return weights
    files = ", ".join(f"{head}: {name}" for head, name in weights["files"].items())
    return f"{weights['location']}; {weights['format']}\n            {files}"


def comparison(a: str, b: str, found: dict[str, Any]) -> str:
    """What differs between two specs, for reading."""
    rows: list[tuple[str, ...]] = [("spec", a, b)]
    rows += [(p, _value(x), _value(y)) for p, (x, y) in found["spec"].items()]
    text = columns(rows) if len(rows) > 1 else "the specs are the same"
    text = f"{sentence(found, a, b)}\n\n{text}"
    if found["head"] is None:
        return text + "\n\nno head in common"
    rows = [(f"head {found['head']}", a, b)]
    rows += [(name, str(x), str(y)) for name, (x, y) in found["structure"].items()]
    rows += [(name, _cost(name, x), _cost(name, y)) for name, (x, y) in found["costs"].items()]
    return text + "\n\n" + columns(rows)


def _cost(name: str, value: Any) -> str:
    """A cost with its unit."""
    if value is None:
        return "-"
    if name == "wiring_share":
        return f"{value:.2%}"
    return short_number(value) if name.startswith("flops") else _value(value)


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:,.6g}" if isinstance(value, float) else json.dumps(value).strip('"')
