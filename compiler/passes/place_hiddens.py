"""Tells sums which list of hiddens they are appended to, so that they are written where it lies.

Without it a program without gradients takes memory for each hidden among what it takes for others
and gives back: the hiddens stay, so the others lie somewhere else in every block and are as cold.
"""

from __future__ import annotations

from multiway.compiler.fusion import Rewriter, Tally
from multiway.compiler.graph import OUTPUT, LayerGraph, Record, Value


def place_hiddens(graph: LayerGraph, tally: Tally) -> LayerGraph:
    """The graph with the list as `room` of each sum that is appended to it, where it is known how
    long the list gets and the list is there before the sum. What a program puts out stays apart:
    it would keep the memory of the whole list.
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
    if not rooms:
        return graph
    rewriter = Rewriter(graph)
    for record in graph:
        if record.path in rooms:
            arguments = {**graph.arguments(record.path), "room": rooms[record.path]}
            rewriter.add(record, arguments, "place_hiddens")
        else:
            rewriter.keep(record)
    tally.fired += list(rooms)
    return rewriter.finish()


def _may_lie_there(graph: LayerGraph, maker: Record) -> bool:
    if maker.op != "linear_sum" or "room" in graph.sources(maker.path):
        return False
    return all(graph.record(to).op != OUTPUT for to, _ in graph.readers(Value(maker.path)))
