"""Keys and values of earlier tokens: what generation keeps from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from multiway.compiler.assemble.program import Program
from multiway.compiler.graph.layer_graph import Value


@dataclass(kw_only=True)
class Cache:
    """Keys and values of all layers while a program with a cache is built."""

    offset: Value
    layers: Sequence[Value]  # key, value, key, value, ...
    slots: Value
    reads: bool  # decode attends to the cache; prefill to its own tokens, and only writes
    written: list[Value] = field(default_factory=list)

    def mask(self, program: Program) -> Value:
        """What tokens at the slots see of the cache."""
        given = {"slots": self.slots, "cache": self.layers[0]}
        return program.node("cache.mask", "cache_mask", given)

    def write(self, program: Program, path: str, layer: int, **new: Value) -> list[Value]:
        """The cache of a layer with new keys and values at the slots, in the order given.

        path: of the attention. new: `key` and `value` [B, K, T, E].
        """
        found = []
        for i, (name, x) in enumerate(new.items()):
            given = {"cache": self.layers[2 * layer + i], "new": x, "slots": self.slots}
            found.append(program.node(f"{path}.{name}_cache", "cache_write", given))
        self.written += found
        return found


def open_cache(program: Program, cache: list[Value], *, positions: Value, reads: bool) -> Cache:
    """A cache that is written at `positions`, and read when a program decodes.

    cache: offset [B], then key and value [B, K, S, E] of every layer.
    """
    offset, *layers = cache
    given = {"offset": offset, "positions": positions}
    slots = program.node("cache.slots", "cache_slots", given)
    return Cache(offset=offset, layers=layers, slots=slots, reads=reads)
