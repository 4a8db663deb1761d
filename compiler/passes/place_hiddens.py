"""Tells sums which list of hiddens they are appended to, so that they are written where it lies.

Without it a program without gradients takes memory for each hidden among what it takes for others
and gives back: the hiddens stay, so the others lie somewhere else in every block and are as cold.

A mix that reads that very list may write the stream that the sum begins with there, too, biases
included: then nothing is left of the sum but its products.
"""

from __future__ import annotations

from dataclasses import replace

from multiway.compiler.fusion import Rewriter, Tally, params_list
from multiway.compiler.graph import OUTPUT, LayerGraph, Record, Value


def place_hiddens(graph: LayerGraph, tally: Tally) -> LayerGraph:
    """The graph with the list as `room` of each sum that may lie there; where a mix begins it, with
    the biases of the sum as `offsets` of the mix.
    """
    rooms = _rooms(graph)
    if not rooms:
        return graph
    changed: dict[str, Record] = {}
    for path, room in rooms.items():
        total = graph.record(path)
        mix = _begins(graph, total, room)
        both = (total,) if mix is None else _moved(mix, total)
        changed |= {record.path: record for record in both}
    rewriter = Rewriter(graph)
    for record in graph:
        if record.path in changed:
            given = {"room": rooms[record.path]} if record.path in rooms else {}
            arguments = {**graph.arguments(record.path), **given}
            rewriter.add(changed[record.path], arguments, "place_hiddens")
        else:
            rewriter.keep(record)
    tally.fired += changed
    return rewriter.finish()


def _rooms(graph: LayerGraph) -> dict[str, Value]:
    """The list of each sum that is appended to one, where it is known how long the list gets and
    the list is there before the sum. What a program puts out stays apart: it would keep the memory
    of the whole list.
    """
    rooms: dict[str, Value] = {}
    order = {record.path: i for i, record in enumerate(graph)}
    for record in graph:
        reads = graph.sources(record.path)
        if record.op != "append" or not record.attrs["capacity"] or "history" not in reads:
            continue
        room, maker = reads["history"], graph.record(reads["x"].path)
        if _may_lie_there(graph, maker) and order[room.path] < order[maker.path]:
            rooms.setdefault(maker.path, room)
    return rooms


def _may_lie_there(graph: LayerGraph, maker: Record) -> bool:
    if maker.op != "linear_sum" or "room" in graph.sources(maker.path):
        return False
    return all(graph.record(to).op != OUTPUT for to, _ in graph.readers(Value(maker.path)))


def _begins(graph: LayerGraph, total: Record, room: Value) -> Record | None:
    """The mix that makes the residual of a sum, as its last way, of the list that the sum is
    appended to, if nobody else reads that way.
    """
    residual = graph.sources(total.path)["residual"]
    mix = graph.record(residual.path)
    if mix.op != "fused_mix" or graph.sources(mix.path)["history"] != room:
        return None
    last = bool(mix.attrs["raw"]) and residual.port == len(mix.outputs) - 1
    alone = graph.readers(residual) == [(total.path, "residual")]
    return mix if last and alone and "biases" not in graph.arguments(total.path) else None


def _moved(mix: Record, total: Record) -> tuple[Record, Record]:
    """Both, with the biases of the sum as offsets of the mix."""
    biases = {name: path for name, path in total.params.items() if name.startswith("biases.")}
    left = {name: path for name, path in total.params.items() if name not in biases}
    offsets = params_list("offsets", list(biases.values()))
    return (
        replace(mix, attrs={**mix.attrs, "placed": True}, params={**mix.params, **offsets}),
        replace(total, params=left),
    )
