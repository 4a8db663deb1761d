"""Parts with experts: modalities have ways of their own, a router chooses experts for a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from multiway.compiler.assemble.hiddens import Hiddens
from multiway.compiler.assemble.parts import plain_norm
from multiway.compiler.assemble.parts.routers import Routers
from multiway.compiler.assemble.program import Program, join
from multiway.compiler.graph.layer_graph import Value
from multiway.specs.language.fields import Config
from multiway.specs.language.parts import PlainNorm
from multiway.specs.language.routing import Chosen, Experts, Modality, chosen
from multiway.specs.spec import Spec

Make = Callable[["Way", list[Value]], list[Value]]
"""Adds the nodes of a part for one way: inputs -> outputs."""


def ways_of(spec: Spec, experts: Experts | None) -> tuple[str, ...]:
    """The ways of a part, by name; one nameless way where modalities share it."""
    if not isinstance(experts, Modality):
        return ("",)
    fused = experts.fused
    ways = dict.fromkeys(map(experts.way_of, spec.modalities))
    return (*ways, *(["fused"] if fused is not None and fused.where else []))


@dataclass(frozen=True, kw_only=True)
class Way:
    """One copy of a part, or several experts among which gates choose.

    With experts, what stands between `open` and `close` has one entry for each before its channels.
    """

    program: Program
    path: str  # of the part
    label: str  # what stands in paths of nodes
    name: str  # and in those of parameters
    experts: Chosen | None = None
    gates: Value | None = None  # [B, T, experts]

    def open(self, x: Value, under: str = "") -> Value:
        """What every expert reads."""
        if self.experts is None:
            return x
        attrs = {"count": self.experts.count}
        at = join(self.path, under, "spread", self.label)
        return self.program.node(at, "spread", {"x": x}, attrs=attrs, part=self.experts)

    def close(self, xs: Value, under: str = "") -> Value:
        """What experts give, weighed by their gates."""
        if self.experts is None:
            return xs
        assert self.gates is not None
        given, attrs = {"xs": xs, "gates": self.gates}, {"most": self.experts.most}
        at = join(self.path, under, "mixed", self.label)
        return self.program.node(at, "mix_experts", given, attrs=attrs, part=self.experts)

    def linear(self, name: str, x: Value, *, part: Config) -> Value:
        """A projection of an opened value. Of experts, each has its own."""
        op = "linear" if self.experts is None else "expert_linear"
        at, params = join(self.path, name, self.label), join(self.path, name, self.name)
        return self.program.node(at, op, {"x": x}, params=params, part=part)

    def linears(self, names: dict[str, Value], *, part: Config) -> list[Value]:
        """Projections by name, each of its own input."""
        return [
            self.close(self.linear(name, self.open(x, name), part=part), name)
            for name, x in names.items()
        ]

    def norm(self, name: str, norm: PlainNorm, x: Value, *, default: PlainNorm) -> Value:
        """A norm of an opened value. Of experts, each has its own gain and shift."""
        if self.experts is not None:
            return self.affine(name, norm, self.bare_norm(name, norm, x, default=default))
        at, params = join(self.path, name, self.label), join(self.path, name, self.name)
        return plain_norm.build(self.program, at, norm, x, params=params, default=default)

    def bare_norm(self, name: str, norm: PlainNorm, x: Value, *, default: PlainNorm) -> Value:
        """What all experts have in common of a norm: all but gain and shift."""
        at = join(self.path, name, "bare", self.label)
        return plain_norm.build(self.program, at, norm, x, params={}, default=default)

    def affine(self, name: str, norm: PlainNorm, x: Value) -> Value:
        """The gain and shift that each expert has, if any."""
        if not norm.weight:
            return x
        at, params = join(self.path, name, self.label), join(self.path, name, self.name)
        return self.program.node(at, "expert_affine", {"x": x}, params=params, part=norm)


class Ways:
    """Sends what the parts of a sequence read through their ways, and joins it again."""

    def __init__(self, program: Program, routers: Routers, seq: Hiddens) -> None:
        self.program, self.routers, self.seq = program, routers, seq

    def one(
        self,
        path: str,
        experts: Experts | None,
        x: Value,
        make: Callable[[Way, Value], Value],
        *,
        under: str = "",
    ) -> Value:
        """A part with one input and one output."""

        def many(way: Way, xs: list[Value]) -> list[Value]:
            return [make(way, xs[0])]

        (joined,) = self.many(path, experts, [x], many, under=under)
        return joined

    def many(
        self,
        path: str,
        experts: Experts | None,
        inputs: list[Value],
        make: Make,
        *,
        under: str = "",
    ) -> list[Value]:
        """A part with several inputs or outputs, all along the sequence.

        path: of the part, by which its router is known: a second call with the same path uses the
        gates of the first. under: where in the part what cuts and joins the sequence stands.
        """
        seq = self.seq
        if not isinstance(experts, Modality):
            return make(self._way(path, "", "", experts, inputs), inputs)
        present = [segment.modality for segment in seq.segments]
        fused = experts.fused
        if fused is not None and fused.where and set(fused.when) == {*present, *seq.cached}:
            return make(self._way(path, "fused", "fused", experts, inputs), inputs)
        if len(seq.segments) == 1:
            name = experts.way_of(present[0])
            return make(self._way(path, name, name, experts, inputs), inputs)
        return self._apart(path, experts, inputs, make, join(path, under))

    def _apart(
        self, path: str, experts: Modality, inputs: list[Value], make: Make, place: str
    ) -> list[Value]:
        """Cuts the sequence, sends every segment through its way, and joins them."""
        program, seq = self.program, self.seq
        assert seq.sizes is not None
        names = [experts.way_of(each.modality) for each in seq.segments]
        pieces: dict[Value, list[Value]] = {}
        for x in inputs:
            if x not in pieces:
                at = join(place, "split", str(len(pieces)) if pieces else "")
                pieces[x] = program.nodes(at, "split", {"x": x, "sizes": seq.sizes}, part=experts)
        outputs = []
        for i, (segment, name) in enumerate(zip(seq.segments, names, strict=True)):
            label = name if name not in names[:i] else f"{name}.{segment.name}"
            xs = [pieces[x][i] for x in inputs]
            outputs.append(make(self._way(path, label, name, experts, xs, index=i), xs))
        columns = list(zip(*outputs, strict=True))
        joins = [join(place, "join", str(i) if i else "") for i in range(len(columns))]
        return [
            program.node(name, "concat", {"parts": list(parts)}, part=experts)
            for name, parts in zip(joins, columns, strict=True)
        ]

    def _way(
        self,
        path: str,
        label: str,
        name: str,
        experts: Experts | None,
        inputs: list[Value],
        *,
        index: int | None = None,
    ) -> Way:
        """A way with its gates. index: of the segment that takes it, None for all of them."""
        inner, gates = chosen(experts), None
        if inner is not None:
            at, params = join(path, "router", label), join(path, "router", name)
            gates = self.routers.gates(at, params, inner, inputs[0], self.seq, index)
        return Way(
            program=self.program, path=path, label=label, name=name, experts=inner, gates=gates
        )
