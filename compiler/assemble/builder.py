"""Spec to layer graph: embeddings, blocks and output. Heads build their programs on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from multiway.compiler.assemble.declare import attention_widths
from multiway.compiler.assemble.hiddens import Cache, Hiddens, Segment
from multiway.compiler.assemble.parameters import join, norm_eps, norm_kind
from multiway.compiler.assemble.parts.experts import Routing
from multiway.compiler.assemble.parts.routers import padding_of
from multiway.compiler.assemble.trunk import Trunk
from multiway.compiler.graph import INPUT, OUTPUT, Arguments, LayerGraph, Param, Record, Value
from multiway.compiler.op import registry
from multiway.compiler.types import Tensor, Type, sym
from multiway.specs.config import Config
from multiway.specs.language import Learned
from multiway.specs.parts import PlainNorm
from multiway.specs.spec import Spec


class Builder:
    """Adds nodes to one graph. Parameters are found by path among the declared ones."""

    def __init__(
        self, spec: Spec, *, name: str, params: Mapping[str, Param], statistics: bool = False
    ) -> None:
        """statistics: name what all routers do, for taps."""
        self.spec, self.statistics = spec, statistics
        self.graph = LayerGraph(name=name, params=params)
        self.tables: dict[tuple[int, float], list[Value]] = {}
        self.pass_name = ""
        self.routing = Routing(self)

    @contextmanager
    def pass_(self, name: str) -> Iterator[None]:
        """Puts a name before the paths of nodes: several passes read the same parameters."""
        self.pass_name, self.tables = name, {}
        yield
        self.pass_name, self.tables = "", {}

    def name(self, name: str, value: Value) -> None:
        """Gives a value a short name for taps."""
        self.graph.names[join(self.pass_name, name)] = value

    # Nodes

    def nodes(
        self,
        path: str,
        op: str,
        arguments: Arguments,
        *,
        attrs: Mapping[str, Any] | None = None,
        params: str | Mapping[str, str] | None = None,
        part: Config | None = None,
    ) -> list[Value]:
        """Adds a node. `params` is the path its parameters stand under (default: its own), or a
        mapping from role to path."""
        record = registry()[op]
        if isinstance(params, Mapping):
            found = dict(params)
        else:
            base = path if params is None else params
            paths = {role: f"{base}.{role}" for role in record.params}
            found = {role: p for role, p in paths.items() if p in self.graph.params}
        return self.graph.add(
            Record(
                path=join(self.pass_name, path),
                op=op,
                attrs=record.full_attrs(attrs or {}),
                params=found,
                span=part.span() if part is not None else None,
            ),
            arguments,
        )

    def node(self, path: str, op: str, arguments: Arguments, **more: Any) -> Value:
        """Adds a node with one output."""
        (value,) = self.nodes(path, op, arguments, **more)
        return value

    def input(self, name: str, *types: Type, part: Config | None = None) -> list[Value]:
        span = part.span() if part is not None else None
        attrs = {"list": len(types) > 1}
        record = Record(path=f"inputs.{name}", op=INPUT, attrs=attrs, outputs=types, span=span)
        return self.graph.add(record, {})

    def output(self, **values: Value | Sequence[Value]) -> LayerGraph:
        """Ends the program. A list of values comes out as a list, several names as a tuple."""
        self.graph.add(Record(path="outputs", op=OUTPUT), values)
        return self.graph

    def output_loss(self, loss: Value, **metrics: Value) -> LayerGraph:
        """Ends a program of training: the loss of its head with those of routers, and metrics."""
        whole, more = self.routing.routers.with_losses(loss)
        found: dict[str, Value | list[Value]] = {"loss": whole}
        if whole != loss:
            found["metrics_task"] = loss
        found |= {f"metrics_{name}": value for name, value in {**metrics, **more}.items()}
        loads = self.routing.routers.loads()
        if loads:
            found["metrics_load"] = list(loads.values())
        attrs = {"loads": list(loads)} if loads else {}
        self.graph.add(Record(path="outputs", op=OUTPUT, attrs=attrs), found)
        return self.graph

    def linear(self, path: str, x: Value, *, part: Config, params: str | None = None) -> Value:
        return self.node(path, "linear", {"x": x}, params=params, part=part)

    def norm(
        self,
        path: str,
        norm: PlainNorm,
        x: Value,
        *,
        params: str | None = None,
        default: PlainNorm | None = None,
    ) -> Value:
        """default: the norm that kind and eps are inherited from; that of the first block."""
        default = default or self.spec.blocks[0].norm
        attrs = {"eps": norm_eps(norm, default)}
        op = norm_kind(norm, default)
        return self.node(path, op, {"x": x}, attrs=attrs, params=params, part=norm)

    # Inputs and embeddings

    def token_type(self, name: str, *, batch: str = "B") -> Tensor:
        """The type of an input as a program takes it."""
        each, b = self.spec.inputs[name], sym(batch)
        if each.form() == "image":
            assert each.size is not None
            return Tensor((b, each.channels, each.size, each.size))
        if each.form() == "features":
            assert each.features is not None
            return Tensor((b, self.length(name), each.features))
        return Tensor((b, self.length(name)), "int")

    def length(self, name: str) -> Any:
        """The named length of an input: T for the first text (or vectors), T_name for others."""
        forms = {each.form(): n for n, each in reversed(list(self.spec.inputs.items()))}
        first = forms.get("tokens") or forms.get("features")
        return sym("T" if name == first else f"T_{name}")

    def inputs_for(self, names: Sequence[str], *, padding: bool = True) -> dict[str, Value]:
        """Program inputs for the named inputs of the spec, with `name_padding` where declared."""
        found: dict[str, Value] = {}
        for name in names:
            each = self.spec.inputs[name]
            (found[name],) = self.input(name, self.token_type(name), part=each)
        for name in names:
            if padding and self.spec.inputs[name].padding == "right":
                shape = self.token_type(name).shape[:2]
                (value,) = self.input(f"{name}_padding", Tensor(shape, "bool"))
                found[f"{name}_padding"] = value
        return found

    def masks_for(self, names: Sequence[str]) -> dict[str, Value]:
        """`name_masked` [B, patches] for every image whose modality has a mask token."""
        found = {}
        for name in names:
            embed = self.spec.embed.get(self.spec.inputs[name].modality)
            if embed is not None and embed.mask_token:
                patches = (self.spec.tokens_of(name) or 0) - (1 if embed.cls else 0)
                kind = Tensor((sym("B"), patches), "bool")
                (found[f"{name}_masked"],) = self.input(f"{name}_masked", kind)
        return found

    def embed(self, name: str, values: Mapping[str, Value]) -> Value:
        """The embedding of one input: `values` may hold name, name_masked, name_positions."""
        each = self.spec.inputs[name]
        embed = self.spec.embed.get(each.modality)
        path, params = f"embed.{name}", f"embed.{each.modality}"
        x = self._embed_form(path, params, name, values)
        position = embed.position if embed else None
        if isinstance(position, Learned):
            where = values.get(f"{name}_positions")
            if where is None:
                where = self.node(f"{path}.positions", "positions", {"x": x})
            x = self.node(
                f"{path}.position",
                "add_position",
                {"x": x, "positions": where},
                attrs={"offset": position.offset},
                params=f"{params}.position",
                part=position,
            )
        padding = values.get(f"{name}_padding")
        if padding is not None:
            x = self.node(f"{path}.padded", "zero_padding", {"x": x, "padding": padding})
        return x

    def _embed_form(self, path: str, params: str, name: str, values: Mapping[str, Value]) -> Value:
        each = self.spec.inputs[name]
        embed = self.spec.embed.get(each.modality)
        x = values[name]
        if each.form() == "tokens":
            return self.node(f"{path}.tokens", "embedding", {"tokens": x}, params=params, part=each)
        if each.form() == "features":
            return self.linear(f"{path}.project", x, part=each, params=f"{params}.project")
        assert embed is not None
        patch = f"{params}.patch"
        x = self.node(f"{path}.patch", "patch_embed", {"image": x}, params=patch, part=embed.patch)
        if (masked := values.get(f"{name}_masked")) is not None:
            token = {"token": f"{params}.mask_token"}
            x = self.node(
                f"{path}.masked",
                "mask_tokens",
                {"x": x, "masked": masked},
                params=token,
                part=embed,
            )
        if embed.cls:
            token = {"token": f"{params}.cls"}
            x = self.node(f"{path}.cls", "prepend_token", {"x": x}, params=token, part=embed)
        return x

    def sequence(
        self, names: Sequence[str], values: Mapping[str, Value], *, mask: str | None = None
    ) -> Hiddens:
        """Embeds inputs and joins them. `mask`: that of the spec, or `prefix`."""
        parts = [self.embed(name, values) for name in names]
        segments = tuple(map(self._segment, names, parts, [values] * len(names)))
        sizes = None
        hidden = parts[0]
        if len(parts) > 1:
            sizes = self.node("embed.sizes", "segment_lengths", {"parts": parts})
            hidden = self.node("embed.join", "concat", {"parts": parts})
        self.name("hidden.0", hidden)
        seq = Hiddens(hidden=hidden, segments=segments, sizes=sizes)
        if mask == "prefix":
            seq.causal = False
            if sizes is not None:
                given = {"x": hidden, "sizes": sizes}
                seq.mask = self.node("embed.mask", "prefix_mask", given)
        else:
            seq.mask = self._padding_mask(seq)
        return seq

    def _segment(self, name: str, hidden: Value, values: Mapping[str, Value]) -> Segment:
        each = self.spec.inputs[name]
        return Segment(
            name=name,
            modality=each.modality,
            hidden=hidden,
            tokens=values[name] if each.form() == "tokens" else None,
            padding=values.get(f"{name}_padding"),
        )

    def _padding_mask(self, seq: Hiddens) -> Value | None:
        """The mask of padded keys, where some query could see one."""
        padded = [segment.padding for segment in seq.segments]
        causal = all(block.attention.mask == "causal" for block in self.spec.blocks)
        # Behind the last segment's padding stands nothing, so causal blocks need no mask for it.
        if not any(padded[:-1] if causal else padded):
            return None
        padding = padding_of(self, seq)
        assert padding is not None
        return self.node("embed.mask", "padding_mask", {"padding": padding})

    def trunk(self, seq: Hiddens) -> Value:
        """All blocks and the output norm. Names `hidden.i`, and the streams, for taps."""
        return Trunk(self, seq).run()

    # Caches

    def cache_types(self) -> list[Type]:
        """offset [B], then key and value [B, K, S, E] of every layer."""
        types: list[Type] = [Tensor((sym("B"),), "int")]
        for block in self.spec.blocks:
            heads = block.attention.kv_heads or block.attention.heads
            head = attention_widths(self.spec, block)[0] // block.attention.heads
            types += [Tensor((sym("B"), heads, sym("S"), head))] * 2
        return types

    def open_cache(
        self, seq: Hiddens, cache: list[Value], *, positions: Value, reads: bool
    ) -> None:
        """Lets a sequence write to a cache at `positions`, and read it when it decodes."""
        offset, layers = cache[0], cache[1:]
        given = {"offset": offset, "positions": positions}
        slots = self.node("cache.slots", "cache_slots", given)
        seq.cache = Cache(offset=offset, layers=layers, slots=slots, reads=reads)
        if reads:
            arguments = {"slots": slots, "cache": layers[0]}
            seq.mask = self.node("cache.mask", "cache_mask", arguments)
