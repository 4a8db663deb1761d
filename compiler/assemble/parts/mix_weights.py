"""Weights of a mix that are not depth attention: fixed, learned, made from each token."""

from __future__ import annotations

from multiway.compiler.assemble.parameters import Declared, initial_or, start_of
from multiway.compiler.assemble.parts import plain_norm
from multiway.compiler.assemble.program import Program
from multiway.compiler.graph.init import ZEROS, Init
from multiway.compiler.graph.layer_graph import Value
from multiway.specs.connections import Reading
from multiway.specs.language.parts import PlainNorm
from multiway.specs.language.wiring import Generator, Mix, Static


def declare(declared: Declared, mix: Mix, found: Reading) -> None:
    """The learned numbers of one reader, and what makes numbers from each token."""
    if mix.static is not None:
        _declare_static(declared, mix, mix.static, found)
    if mix.generator is not None:
        _declare_generator(declared, mix.generator, found)


def _declare_static(declared: Declared, mix: Mix, static: Static, found: Reading) -> None:
    path = f"{found.path}.static"
    if static.complement:
        init = initial_or(static.init, (1,), start_of("complement_weights", "static"))
        declared.add(path, (1,), init, static)
        return
    columns = found.known if static.columns == "all" else len(found.sources)
    shape = (len(found.ways), columns)
    default = ZEROS if mix.add else start_of("depth_weights", "static")
    declared.add(path, shape, initial_or(static.init, shape, default), static)


def _declare_generator(declared: Declared, generator: Generator, found: Reading) -> None:
    ways, sources, width = len(found.ways), len(found.sources), declared.spec.width
    hidden = generator.hidden.count(ways=ways, sources=sources, last=found.last)
    path, out = found.path, ways * sources
    plain_norm.declare(declared, f"{path}.norm", _norm(generator), width=width)
    first = Init(kind="normal", std=width**-0.5)
    last = initial_or(generator.init, (out, hidden), ZEROS)
    declared.linear(
        f"{path}.hidden", out=hidden, width=width, bias=False, part=generator, init=first
    )
    declared.linear(f"{path}.output", out=out, width=hidden, bias=False, part=generator, init=last)


def _norm(generator: Generator) -> PlainNorm:
    """The norm of a generator: an RMS norm without weight unless the spec gives one."""
    return generator.norm or PlainNorm(kind="rms_norm", weight=False, node=generator.node)


def build(program: Program, name: str, mix: Mix, found: Reading, newest: Value) -> Value:
    """The weights of one reader of a mix, [ways, sources] or one such matrix a token.

    name: of the mix. newest: the hidden that weights are made from [B, T, D].
    """
    path, ways = f"{found.path}.weights", {"ways": len(found.ways)}
    if mix.fixed is not None:
        return _fixed(program, mix, found, newest)
    static = {"static": f"{found.path}.static"} if mix.static is not None else {}
    if mix.static is not None and mix.static.complement:
        return program.node(path, "complement_weights", {}, params=static, part=mix)
    given: dict[str, Value] = {}
    left_out = len(found.sources) < found.known
    if mix.static is not None and mix.static.columns == "all" and left_out:
        at, picked = f"{found.path}.picked", {"columns": list(found.sources)}
        given["static"] = program.node(
            at, "pick_columns", {}, attrs=picked, params=static, part=mix.static
        )
        static = {}
    if mix.generator is not None:
        given["dynamic"] = _generated(program, found.path, mix.generator, newest)
        if name == "mix":
            program.name(f"dynamic.{found.index - 1}", given["dynamic"])
    return program.node(path, "depth_weights", given, attrs=ways, params=static, part=mix)


def _fixed(program: Program, mix: Mix, found: Reading, newest: Value) -> Value:
    assert mix.fixed is not None
    sources = len(found.sources)
    value = mix.fixed.number(sources=sources)
    attrs = {"ways": len(found.ways), "sources": sources, "value": value}
    path = f"{found.path}.weights"
    return program.node(path, "fixed_weights", {"x": newest}, attrs=attrs, part=mix)


def _generated(program: Program, path: str, generator: Generator, newest: Value) -> Value:
    x = plain_norm.build(program, f"{path}.norm", _norm(generator), newest)
    x = program.linear(f"{path}.hidden", x, part=generator)
    x = program.activation(f"{path}.activation", generator.activation, x, part=generator)
    return program.linear(f"{path}.output", x, part=generator)
