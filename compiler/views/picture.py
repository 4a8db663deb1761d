"""The layer graph as a picture: SVG, or an HTML page around it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from multiway.compiler.graph.layer_graph import LayerGraph, Record, block_of
from multiway.compiler.graph.order import Step, steps
from multiway.compiler.views.text import Fold, line, visible

_ROW, _WIDTH, _HEIGHT, _GAP, _MARGIN = 46, 168, 30, 22, 40
_COLOURS = {
    "linear": "#cfe3f7",
    "attention": "#f9d9b8",
    "mix": "#d9f0d3",
    "depth_weights": "#d9f0d3",
    "append": "#d9f0d3",
    "layer_norm": "#f3ecc6",
    "rms_norm": "#f3ecc6",
    "split": "#eadcf4",
    "concat": "#eadcf4",
}
_STYLE = (
    "text{font:11px sans-serif;text-anchor:middle}.op{fill:#555;font-size:9px}"
    ".edge{fill:none;stroke:#8a8a8a;stroke-width:1}.node rect{stroke:#666}"
    ".node:hover rect{stroke:#c00;stroke-width:2}.block{fill:#f6f6f6;stroke:#bbb}"
    ".fold{text-anchor:start;fill:#333;font-weight:bold}"
)


def to_svg(graph: LayerGraph, *, fold: bool = True) -> str:
    """The graph from top to bottom. fold: draws consecutive blocks of one layout once."""
    parts = list(visible(graph) if fold else steps(graph))
    folds = {part.first: part for part in parts if isinstance(part, Fold)}
    records = [record for part in parts if isinstance(part, Step) for record in part.records]
    places = _places(graph, records, folds)
    width = max(x for x, _ in places.values()) + _WIDTH + _MARGIN
    height = max(y for _, y in places.values()) + _HEIGHT + _MARGIN
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    body = [_blocks(records, places, folds, width), _edges(graph, places)]
    body += [_node(graph, record, places[record.path]) for record in records]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{_STYLE}</style>'
    title = f"<title>program {escape(graph.name)}</title>"
    return head + title + "\n".join(body) + "</svg>\n"


def to_html(graph: LayerGraph, title: str, *, fold: bool = True) -> str:
    """A page with the picture; a node shows its full line when the pointer rests on it."""
    text = escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text}</title></head>'
        f"<body><h1 style='font:20px sans-serif'>{text}</h1>{to_svg(graph, fold=fold)}"
        "</body></html>\n"
    )


def _places(
    graph: LayerGraph, records: list[Record], folds: Mapping[str, Fold]
) -> dict[str, tuple[int, int]]:
    """Top left corners. A node stands below all that it reads; blocks have rows of their own."""
    drawn = {record.path for record in records}
    rows: dict[str, int] = {}
    filled: dict[int, int] = {}
    block, floor = "", 0
    for record in records:
        here = block_of(record.path)
        if here != block:
            floor = max(rows.values(), default=-1) + (2 if here in folds else 1)
            block = here
        reads = [v.path for v in graph.sources(record.path).values() if v.path in drawn]
        rows[record.path] = max([floor, *(rows[path] + 1 for path in reads)])
    places = {}
    for record in records:
        row = rows[record.path]
        column = filled.get(row, 0)
        filled[row] = column + 1
        places[record.path] = (_MARGIN + column * (_WIDTH + _GAP), _MARGIN + row * _ROW)
    return places


def _blocks(
    records: list[Record],
    places: Mapping[str, tuple[int, int]],
    folds: Mapping[str, Fold],
    width: int,
) -> str:
    drawn = []
    for fold in folds.values():
        inside = [places[r.path] for r in records if block_of(r.path) == fold.first]
        top = min(y for _, y in inside) - 24
        height = max(y for _, y in inside) + _HEIGHT + 8 - top
        label = escape(fold.line().removeprefix("# "))
        drawn.append(
            f'<rect class="block" x="8" y="{top}" width="{width - 16}" height="{height}" rx="6"/>'
            f'<text class="fold" x="16" y="{top + 15}">{label}</text>'
        )
    return "\n".join(drawn)


def _edges(graph: LayerGraph, places: Mapping[str, tuple[int, int]]) -> str:
    drawn = []
    for path, (x, y) in places.items():
        for value in graph.sources(path).values():
            if value.path not in places:
                continue
            from_x, from_y = places[value.path]
            a, b = from_x + _WIDTH // 2, from_y + _HEIGHT
            c = x + _WIDTH // 2
            drawn.append(f'<path class="edge" d="M{a} {b}C{a} {b + 16} {c} {y - 16} {c} {y}"/>')
    return "\n".join(drawn)


def _node(graph: LayerGraph, record: Record, place: tuple[int, int]) -> str:
    x, y = place
    block = block_of(record.path)
    name = record.path.removeprefix(block + ".") if block else record.path
    colour = _COLOURS.get(record.op, "#ffffff")
    middle = x + _WIDTH // 2
    kind = record.op + (f" {record.outputs[0]}" if record.outputs else "")
    return (
        f'<g class="node"><title>{escape(line(graph, record))}</title>'
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="4" fill="{colour}"/>'
        f'<text x="{middle}" y="{y + 13}">{escape(_short(name, 28))}</text>'
        f'<text class="op" x="{middle}" y="{y + 25}">{escape(_short(kind, 34))}</text></g>'
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
