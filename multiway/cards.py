"""What is worth knowing of a model before running it, as plain data: cards and comparisons."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from multiway import api
from multiway.compiler.analysis.costs import Cost, costs, default_sizes, total
from multiway.compiler.assemble.build import build, parameters
from multiway.compiler.graph.layer_graph import LayerGraph
from multiway.specs import MultiwayError, Spec
from multiway.specs.checks.routing import routings
from multiway.specs.data_folders import OWN
from multiway.specs.language.inputs import Form
from multiway.specs.language.routing import chosen
from multiway.zoo import Entry, catalogue

TEXT_TOKENS = 32  # of a text beside an image; a text alone is taken at its longest


def count_parameters(spec: Spec, head: str) -> int:
    """Parameters of a spec with one of its heads."""
    return sum(param.size for param in parameters(spec.for_head(head)).values())


def routes(spec: Spec) -> list[str]:
    """The routings that any part uses, those inside of ways as well."""
    found = {
        str(each.route)
        for _, experts in routings(spec)
        for each in (experts, chosen(experts))
        if each is not None
    }
    return sorted(found)


def summary(entry: Entry) -> dict[str, Any]:
    """An entry in a few facts. `parameters` are counted for each head."""
    spec = api.load(entry.name)
    return {
        "name": entry.name,
        "family": entry.family,
        "variant": entry.variant,
        "parameters": {head: count_parameters(spec, head) for head in spec.heads},
        "heads": {name: getattr(head, "kind", "") for name, head in spec.heads.items()},
        "wiring": spec.wiring.use,
        "routing": routes(spec),
        "paper": entry.card.get("paper"),
    }


def limits(spec: Spec) -> dict[str, int]:
    """The longest sequence of every text, by the name of its length."""
    found = {}
    for i, name in enumerate(n for n, e in spec.inputs.items() if e.form() == Form.TOKENS):
        found["T" if i == 0 else f"T_{name}"] = spec.tokens_of(name) or 0
    return {name: most for name, most in found.items() if most}


def head_costs(spec: Spec, head: str) -> dict[str, Any]:
    """Parameters and FLOPs of one head's main program for one example."""
    spec = spec.for_head(head)
    graph = build(spec)
    has_image = any(each.form() == Form.IMAGE for each in spec.inputs.values())
    length = TEXT_TOKENS if has_image else None
    sizes = default_sizes(graph, limits(spec), batch=1, length=length)
    parts = costs(graph, sizes)
    whole = total(parts)
    tokens = sizes.get("T", 1)
    unit = "example" if has_image else "token"
    return {
        "parameters": whole.parameters,
        "active_parameters": whole.active,
        "wiring_share": round(parts.get("wiring", Cost()).parameters / whole.parameters, 6),
        f"flops_per_{unit}": whole.flops if has_image else whole.flops / tokens,
        "sizes": sizes,
    }


def describe(entry: Entry) -> dict[str, Any]:
    """Everything about an entry: its card, its heads with their costs, its weights."""
    spec, card = api.load(entry.name), dict(entry.card)
    known = "weights" in card
    weights = dict(card.pop("weights", None) or {})
    files = weights.pop("files", {}).get(entry.name)
    return {
        "name": entry.name,
        "from": entry.origin if entry.origin == OWN else f"{entry.origin}: {entry.folder}",
        "doc": str(spec.tree["doc"].value) if spec.tree.get("doc") else "",
        **card,
        "cite": spec.tree["cite"].plain() if spec.tree.get("cite") else [],
        "dims": dict(spec.dims),
        "wiring": spec.wiring.use,
        "routing": routes(spec),
        "weights": {**weights, "files": files} if files else None if known else "unknown",
        "heads": {
            name: {"kind": getattr(head, "kind", ""), **head_costs(spec, name)}
            for name, head in spec.heads.items()
        },
    }


def difference(first: Spec, second: Spec, head: str | None) -> dict[str, Any]:
    """What differs between two specs: values, structure of a head's program, costs.

    head: one that both have; default: the first such head.
    """
    shared = [name for name in first.heads if name in second.heads]
    chosen = head or (shared[0] if shared else None)
    result: dict[str, Any] = {"spec": spec_difference(first, second), "head": chosen}
    counts = [each.wiring.lanes.count if each.wiring.lanes else 1 for each in (first, second)]
    result["lanes"] = [0 if count == 1 else count for count in counts]
    if chosen is None:
        return result
    graphs = [build(spec.for_head(chosen)) for spec in (first, second)]
    result["structure"] = structure_difference(*graphs)
    a, b = (head_costs(spec, chosen) for spec in (first, second))
    result["costs"] = {name: [a.get(name), b.get(name)] for name in {**a, **b} if name != "sizes"}
    return result


def spec_difference(first: Spec, second: Spec) -> dict[str, list[Any]]:
    """Path to its two values, None where a spec has none, for every value that differs."""
    a, b = (dict(_flat(spec.tree.plain())) for spec in (first, second))
    for plain in (a, b):
        for name in ("extends", "doc", "cite", "wiring.doc", "wiring.cite"):
            plain.pop(name, None)
    paths = [*a, *(path for path in b if path not in a)]
    return {path: [a.get(path), b.get(path)] for path in paths if a.get(path) != b.get(path)}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, child in value.items():
            yield from _flat(child, f"{path}.{name}" if path else name)
    else:
        yield path, value


def structure_difference(first: LayerGraph, second: LayerGraph) -> dict[str, list[int]]:
    """Nodes in all, and the number of every op, where it differs."""
    a, b = (Counter(record.op for record in graph) for graph in (first, second))
    counts = {op: [a[op], b[op]] for op in sorted({*a, *b}) if a[op] != b[op]}
    return {"nodes": [len(first), len(second)], **counts}


def find(name: str) -> list[Entry]:
    """The entry of a name; of a family, or of a variant in all its sizes, its entries. Raises
    MultiwayError."""
    zoo = catalogue()
    if name in zoo.entries:
        return [zoo.entries[name]]
    family = zoo.bases.get(name, name)
    found = [each for each in zoo if name == each.variant]
    found = found or [each for each in zoo if each.family == family]
    if found:
        return found
    names = [*zoo.names, *zoo.families, *{each.variant for each in zoo if each.variant}]
    raise MultiwayError.one(
        "unknown-spec",
        f"{name!r} is not in the zoo",
        place="zoo",
        expected="a name that `multiway zoo` lists",
        nearest=", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.4)),
    )


def sentence(found: dict[str, Any], a: str, b: str) -> str:
    """What B has more than A, in a line. found: of `difference`."""
    if found["head"] is None:
        return f"{b} against {a}: no head in common"
    parts = []
    if (lanes := found["lanes"])[0] != lanes[1]:
        more = lanes[1] - lanes[0]
        parts.append(f"{more:+d} lane{'s' if abs(more) != 1 else ''}")
    for name, (x, y) in found["costs"].items():
        if name == "parameters" or name.startswith("flops"):
            what = "parameters" if name == "parameters" else "FLOPs"
            if x is None or y is None:
                continue
            parts.append(f"the same {what}" if x == y else f"{_share(y / x - 1)} {what}")
    return f"{b} against {a}: {', '.join(parts)}"


def _share(more: float) -> str:
    """0.0015 as +0.15 %, and what is many times as much as a factor."""
    return f"{1 + more:.3g} times the" if more > 1 else f"{more * 100:+.2g} %"
