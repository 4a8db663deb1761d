"""Where sites of parallel lanes stand in a graph: what `fused_lanes` replaces."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from multiway.compiler.graph.layer_graph import LayerGraph, Record, Value
from multiway.compiler.graph.registry import registry
from multiway.compiler.matching.match import Match, params_list, source

READS = ("read_lanes", "sum_lanes")
WRITES = {"write_lanes": "lanes", "write_pieces": "pieces"}


@dataclass(kw_only=True)
class _Found:
    """A fused op as it is put together. outputs: the weights of mix and write only."""

    attrs: dict[str, Any]
    params: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, Value | Sequence[Value]] = field(default_factory=dict)
    nodes: list[Record] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)

    def take(self, role: str, records: Sequence[Record], own: str) -> bool:
        """Adds a list argument: input `own` of each record, by parameter or by edge alike."""
        by_path = [record.params.get(own) for record in records]
        if all(path is not None for path in by_path):
            self.params |= params_list(role, [path for path in by_path if path is not None])
            return True
        return not any(by_path)

    def take_edges(self, role: str, graph: LayerGraph, records: Sequence[Record], own: str) -> bool:
        """The same; what no parameter gives may come by an edge, from all records or none."""
        if not self.take(role, records, own):
            return False
        edges = [graph.sources(record.path).get(own) for record in records]
        if not any(edges):
            return True
        found = [value for value in edges if value is not None]
        self.arguments[role] = found
        return len(found) == len(edges)


def match(graph: LayerGraph, root: Record) -> Match | None:
    """A read of lanes, or a write that no read follows, with what stands around it."""
    if root.op in WRITES:
        return _ending(graph, root)
    lanes = graph.sources(root.path)["lanes"]
    found = _Found(attrs=_attrs(), nodes=[root])
    for begin in (_tanh, _gates, _given):
        begun = _Found(attrs=_attrs(), nodes=[root])
        if begin(graph, root, lanes, begun):
            found = begun
            break
    else:
        return None
    shape = graph.shape(Value(root.path))
    assert isinstance(shape[-1], int)
    found.attrs["reads"] = shape[-1] // int(graph.shape(lanes)[-1])  # type: ignore[arg-type]
    norms = _norms(graph, root, found)
    nodes = {record.path for record in found.nodes}
    if not _early(graph, lanes, nodes, root):  # else the site that ends is an op of its own
        _end(graph, lanes, found)
    return _matched(graph, root, lanes, norms, found)


def _attrs() -> dict[str, Any]:
    attrs = registry()["fused_lanes"].full_attrs({"balance": {}, "kept": 0})
    return {n: list(v) if isinstance(v, tuple) else v for n, v in attrs.items()}


def _ending(graph: LayerGraph, write: Record) -> Match | None:
    lanes = Value(write.path)
    for path, _ in graph.readers(lanes):
        if graph.record(path).op in READS:
            begun = match(graph, graph.record(path))
            if begun is not None and write.path in begun.nodes:
                return None  # the read is the root
    found = _Found(attrs=_attrs())
    return _matched(graph, write, lanes, [], found) if _end(graph, lanes, found) else None


def _end(graph: LayerGraph, lanes: Value, found: _Found) -> bool:
    """Adds the mix and the write that made lanes, if they did."""
    write = graph.record(lanes.path)
    mix = source(graph, write.path, "lanes") if write.op in WRITES else None
    if mix is None or mix.op != "mix_lanes" or len(graph.readers(Value(mix.path))) > 1:
        return False
    of_mix, of_write = graph.sources(mix.path), graph.sources(write.path)
    leads = {len(graph.shape(each["weights"])) for each in (of_mix, of_write)}
    if "read" in found.arguments:
        read = found.arguments["read"]
        assert isinstance(read, Value)
        leads.add(len(graph.shape(read)))
    if len(leads) > 1:
        return False
    found.attrs["ends"] = WRITES[write.op]
    found.nodes += [mix, write]
    given = {"lanes": of_mix["lanes"], "y": of_write["y"]}
    found.arguments |= {**given, "mix": of_mix["weights"], "write": of_write["weights"]}
    return True


def _given(graph: LayerGraph, root: Record, lanes: Value, found: _Found) -> bool:
    """Weights that come from anywhere, or a sum of lanes."""
    if root.op == "sum_lanes":
        found.attrs["weights"] = "sum"
        return True
    found.attrs["weights"] = "given"
    found.arguments["read"] = graph.sources(root.path)["weights"]
    return True


def _uses(graph: LayerGraph, root: Record, lanes: Value) -> list[Record] | None:
    """The nodes that make the weights of read, mix and write; of read only where a program ends."""
    if root.op != "read_lanes":
        return None
    mixes = [graph.record(p) for p, _ in graph.readers(lanes) if graph.record(p).op == "mix_lanes"]
    nodes = [root]
    if len(mixes) > 1:
        return None
    for mix in mixes:
        writes = [graph.record(path) for path, _ in graph.readers(Value(mix.path))]
        if len(writes) != 1 or writes[0].op not in WRITES:
            return None
        nodes += [mix, writes[0]]
    found = [source(graph, node.path, "weights") for node in nodes]
    return [record for record in found if record is not None]


def _tanh(graph: LayerGraph, root: Record, lanes: Value, found: _Found) -> bool:
    """lane_weights <- tanh <- linear <- layer_norm <- lanes, for each use."""
    uses = _uses(graph, root, lanes) or []
    chains = [_chain(graph, use, ("dynamic", "x"), ("activation", "linear")) for use in uses]
    if not uses or any(use.op != "lane_weights" for use in uses) or not all(chains):
        return False
    if any(activation.attrs["kind"] != "tanh" for activation, _ in chains):
        return False
    if any(set(use.params) != {"scale", "static"} for use in uses):
        return False
    linears = [linear for _, linear in chains]
    norm = _one_norm(graph, linears, "layer_norm")
    if norm is None or graph.sources(norm.path)["x"] != lanes:
        return False
    found.attrs["weights"] = "tanh"
    found.take("statics", uses, "static")
    found.nodes += [record for chain in chains for record in chain]
    return _generator(graph, root, norm, linears, uses, found)


def _gates(graph: LayerGraph, root: Record, lanes: Value, found: _Found) -> bool:
    """lane_gate and sinkhorn <- linear <- rms_norm <- join_lanes <- lanes."""
    uses = _uses(graph, root, lanes) or []
    if [use.op for use in uses] not in (["lane_gate"], ["lane_gate", "sinkhorn", "lane_gate"]):
        return False
    linears = [linear for use in uses for linear in _chain(graph, use, ("z",), ("linear",))]
    norm = _one_norm(graph, linears, "rms_norm") if len(linears) == len(uses) else None
    join = source(graph, norm.path, "x") if norm else None
    if norm is None or join is None or join.op != "join_lanes":
        return False
    if graph.sources(join.path)["lanes"] != lanes:
        return False
    gates = [use.attrs for use in uses if use.op == "lane_gate"]
    found.attrs["weights"] = "gates"
    found.attrs["factors"] = [float(gates[0]["factor"]), float(gates[-1]["factor"])]
    found.attrs["floors"] = [float(gates[0]["eps"]), float(gates[-1]["eps"])]
    if len(uses) > 1:
        found.attrs["balance"] = dict(uses[1].attrs)
    found.take("biases", uses, "bias")
    found.nodes += [*linears, join]
    return _generator(graph, root, norm, linears, uses, found)


def _generator(
    graph: LayerGraph,
    root: Record,
    norm: Record,
    linears: Sequence[Record],
    uses: Sequence[Record],
    found: _Found,
) -> bool:
    """What both kinds of weights have in common: a norm, linears, scales, three uses."""
    found.attrs |= {"eps": norm.attrs["eps"], "goes_on": int(len(uses) > 1)}
    found.params |= {{"weight": "gain"}.get(role, role): p for role, p in norm.params.items()}
    found.nodes += [norm, *uses]
    found.outputs = [Value(use.path) for use in uses[1:]]
    found.take("scales", uses, "scale")
    if not found.take_edges("matrices", graph, linears, "weight"):
        return False
    if not found.take_edges("shifts", graph, linears, "bias"):
        return False
    edges = [v for name in ("matrices", "shifts") for v in found.arguments.get(name, ())]
    return not edges or all(graph.before(value.path, root.path) for value in edges)  # type: ignore[union-attr]


def _chain(
    graph: LayerGraph, use: Record, arguments: Sequence[str], ops: Sequence[str]
) -> list[Record]:
    """The nodes that one reads through these arguments, if they are of these ops."""
    found = [use]
    for argument, op in zip(arguments, ops, strict=True):
        below = source(graph, found[-1].path, argument)
        if below is None or below.op != op:
            return []
        found.append(below)
    return found[1:]


def _one_norm(graph: LayerGraph, linears: Sequence[Record], op: str) -> Record | None:
    """The norm that all these linears read, if it is one and of this kind."""
    norms = [source(graph, linear.path, "x") for linear in linears]
    first = norms[0] if norms else None
    if first is None or first.op != op or any(norm is not first for norm in norms):
        return None
    return first if len(graph.sources(first.path)) == 1 else None


def _norms(graph: LayerGraph, root: Record, found: _Found) -> list[Record]:
    """The norms that read what the site reads, as far as they are like the first of them."""
    readers = graph.readers(Value(root.path))
    norms = [
        record
        for path, argument in readers
        if (record := graph.record(path)).is_norm
        and argument == "x"
        and len(graph.sources(path)) == 1
    ]
    norms = [norm for norm in norms if _form(norm) == _form(norms[0])]
    if norms:
        found.attrs |= {"norm": norms[0].op, "norm_eps": norms[0].attrs["eps"]}
        found.take("gains", norms, "weight")
        found.take("offsets", norms, "bias")
    found.attrs |= {"normed": len(norms), "raw": int(len(norms) < len(readers))}
    found.nodes += norms
    return norms


def _form(norm: Record) -> tuple[Any, ...]:
    return norm.op, norm.attrs["eps"], tuple(norm.params)


def _matched(
    graph: LayerGraph, root: Record, lanes: Value, norms: Sequence[Record], found: _Found
) -> Match | None:
    """The match: what is still read from outside is put out."""
    nodes = frozenset(record.path for record in found.nodes)
    outside = any(path not in nodes for path, _ in graph.readers(lanes))
    kept = bool(found.attrs["ends"]) and outside
    found.attrs["kept"] = int(kept)
    raw = [Value(root.path)] * found.attrs["raw"]
    outputs = (*([lanes] * kept), *found.outputs, *(Value(n.path) for n in norms), *raw)
    if any(_early(graph, value, nodes, root) for value in outputs):
        return None
    return Match(
        at=root.path,
        record=Record(
            path=root.path,
            op="fused_lanes",
            attrs=found.attrs,
            params=found.params,
            span=root.span,
        ),
        arguments={"lanes": lanes, **found.arguments},
        outputs=outputs,
        nodes=nodes,
    )


def _early(graph: LayerGraph, value: Value, nodes: Collection[str], root: Record) -> bool:
    """Whether a node outside reads a value before the root, whose place the fused op takes."""
    outside = [path for path, _ in graph.readers(value) if path not in nodes]
    return any(graph.before(path, root.path) for path in outside)
