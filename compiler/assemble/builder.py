"""What a head builds its programs with. It stands above the parts, which do not know it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multiway.compiler.assemble import inputs
from multiway.compiler.assemble.cache import open_cache
from multiway.compiler.assemble.hiddens import Hiddens
from multiway.compiler.assemble.parts import attention, plain_norm
from multiway.compiler.assemble.parts.experts import Ways
from multiway.compiler.assemble.parts.routers import Routers
from multiway.compiler.assemble.program import Program
from multiway.compiler.assemble.trunk import Trunk
from multiway.compiler.graph.layer_graph import LayerGraph, Param, Value
from multiway.compiler.graph.types import Tensor, Type, sym
from multiway.specs.language.parts import PlainNorm
from multiway.specs.spec import Spec


class Builder(Program):
    """A program with what the spec gives every head: inputs, embeddings, the trunk, caches."""

    def __init__(
        self, spec: Spec, *, name: str, params: Mapping[str, Param], statistics: bool = False
    ) -> None:
        """statistics: name what all routers do, for taps."""
        super().__init__(spec, name=name, params=params)
        self.routers = Routers(self, statistics=statistics)

    def norm(self, path: str, norm: PlainNorm, x: Value, *, params: str | None = None) -> Value:
        """A norm of the head's own. What it leaves open is as in the norms of the first block."""
        return plain_norm.build(self, path, norm, x, params=params)

    # Inputs

    def token_type(self, name: str, *, batch: str = "B") -> Tensor:
        """The type of an input of the spec as a program takes it."""
        return inputs.token_type(self.spec, name, batch=batch)

    def length(self, name: str) -> Any:
        """The named length of an input: T for the first text (or vectors), T_name for others."""
        return inputs.length(self.spec, name)

    def inputs_for(self, names: Sequence[str], *, padding: bool = True) -> dict[str, Value]:
        """Program inputs for the named inputs of the spec, with `name_padding` where declared."""
        return inputs.inputs_for(self, names, padding=padding)

    def masks_for(self, names: Sequence[str]) -> dict[str, Value]:
        """`name_masked` [B, patches] for every image whose modality has a mask token."""
        return inputs.masks_for(self, names)

    # The trunk

    def sequence(
        self, names: Sequence[str], values: Mapping[str, Value], *, mask: str | None = None
    ) -> Hiddens:
        """Embeds inputs and joins them. `mask`: that of the spec, or `prefix`.

        values: the inputs by name, with `name_padding`, `name_masked`, `name_positions` if any.
        """
        return inputs.sequence(self, names, values, mask=mask)

    def trunk(self, seq: Hiddens) -> Value:
        """All blocks and the output norm [B, T, D]. Names `hidden.i`, and the streams, for taps."""
        return Trunk(Ways(self, self.routers, seq)).run()

    # Caches

    def cache_types(self) -> list[Type]:
        """offset [B], then key and value [B, K, S, E] of every layer."""
        layers = [attention.cached(self.spec, block) for block in self.spec.blocks]
        return [Tensor((sym("B"),), "int"), *(kind for layer in layers for kind in layer)]

    def open_cache(
        self, seq: Hiddens, cache: list[Value], *, positions: Value, reads: bool
    ) -> None:
        """Lets a sequence write to a cache at `positions`, and read it when it decodes."""
        seq.cache = open_cache(self, cache, positions=positions, reads=reads)
        if reads:
            seq.mask = seq.cache.mask(self)

    # The end

    def output_loss(self, loss: Value, **metrics: Value) -> LayerGraph:
        """Ends a program of training: the loss of its head with those of routers, and metrics."""
        whole, more = self.routers.with_losses(loss)
        found: dict[str, Value | list[Value]] = {"loss": whole}
        if whole != loss:
            found["metrics_task"] = loss
        found |= {f"metrics_{name}": value for name, value in {**metrics, **more}.items()}
        loads = self.routers.loads()
        if loads:
            found["metrics_load"] = list(loads.values())
        return self.output({"loads": list(loads)} if loads else None, **found)
