"""From a spec to the layer graphs of its programs. Imports no torch."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

from multiway.compiler.assemble import trunk
from multiway.compiler.assemble.builder import Builder
from multiway.compiler.assemble.head import HeadKind
from multiway.compiler.assemble.parameters import Declared
from multiway.compiler.assemble.parts import embedding
from multiway.compiler.assemble.parts.routers import is_statistic
from multiway.compiler.graph.layer_graph import OUTPUT, LayerGraph, Param, Record
from multiway.specs.errors import MultiwayError, Report, nearest, one_of
from multiway.specs.spec import Spec

MAX_PARAMETERS = 4_000_000_000_000
ROUTERS = "routers"  # the tap of all statistics of routers


def head_of(spec: Spec) -> HeadKind:
    """The head that a spec was chosen for."""
    assert spec.head_name, "choose a head with spec.for_head"
    assert isinstance(spec.head, HeadKind)
    return spec.head


def parameters(spec: Spec) -> Mapping[str, Param]:
    """Every parameter of a spec that was chosen for a head, by path, in a fixed order.

    A program may read only some of them; a model always holds all, so that saved files do not
    depend on what was run. Raises MultiwayError.
    """
    if spec not in _parameters:
        _parameters[spec] = _declare(spec)
    return _parameters[spec]


# What a spec declares is asked for with every program. It goes when the spec goes.
_parameters: WeakKeyDictionary[Spec, Mapping[str, Param]] = WeakKeyDictionary()


def _declare(spec: Spec) -> Mapping[str, Param]:
    declared = Declared(spec)
    embedding.declare(declared)
    trunk.declare(declared)
    head_of(spec).declare(declared, f"heads.{spec.head_name}")
    total = sum(param.size for param in declared.values())
    if total > MAX_PARAMETERS:
        raise MultiwayError.one(
            "absurd-size",
            f"this model would have {total:,} parameters",
            span=spec.tree["dims"].span,
            expected=f"at most {MAX_PARAMETERS:,}",
        )
    return dict(declared)  # `declared` holds the spec


def check_init(spec: Spec) -> None:
    """Raises MultiwayError for an entry of `init` that names no parameter of any head.

    Only entries of the spec's own file are checked: one that is inherited may be for a head that
    this spec has not.
    """
    own = spec.tree["name"].span.file
    paths = [path for head in spec.heads for path in parameters(spec.for_head(head))]
    report = Report()
    for pattern in spec.init:
        span = spec.tree["init"].key_span(pattern)
        if span.file == own and not fnmatch.filter(paths, pattern):
            report.add(
                "unknown-parameter",
                f"{pattern!r} matches no parameter",
                span=span,
                expected="a path, or a pattern over paths such as blocks.*.ffn.down.weight",
                nearest=nearest(pattern, paths),
            )
    report.raise_if_any()


def program_names(spec: Spec) -> tuple[str, ...]:
    """The programs of the spec's head, the main one first."""
    return head_of(spec).programs(spec)


def build(
    spec: Spec, *, head: str | None = None, program: str | None = None, taps: Sequence[str] = ()
) -> LayerGraph:
    """The layer graph of one program. Raises MultiwayError.

    head: which head; may be left out when there is one. program: default the head's main program.
    taps: further values to put out, by short name (`hidden.3`) or path; see LayerGraph.resolve.
        `routers` stands for what is known of all routers; see STATISTICS.
    """
    if not spec.head_name or head is not None:
        spec = spec.for_head(head)
    programs = program_names(spec)
    name = program or programs[0]
    if name not in programs:
        raise MultiwayError.one(
            "unknown-program",
            f"head {spec.head_name!r} has no program {name!r}",
            place=spec.name,
            expected=one_of(programs),
            nearest=nearest(name, programs),
        )
    statistics = any(tap == ROUTERS or ".router" in tap for tap in taps)
    builder = Builder(spec, name=name, params=parameters(spec), statistics=statistics)
    graph = head_of(spec).build(builder, name)
    taps = [name for tap in taps for name in (_of_routers(graph) if tap == ROUTERS else [tap])]
    return with_taps(graph, taps) if taps else graph


def _of_routers(graph: LayerGraph) -> list[str]:
    """The names of everything that is known of the routers of a program."""
    return [name for name in graph.names if is_statistic(name)]


def with_taps(graph: LayerGraph, taps: Sequence[str]) -> LayerGraph:
    """The graph with further outputs, which come last as a mapping from tap to tensor."""
    tapped = LayerGraph(name=graph.name, params=graph.params)
    tapped.names = dict(graph.names)
    for record in graph:
        if record.op != OUTPUT:
            tapped.add(record, graph.arguments(record.path))
    outputs = dict(graph.arguments(graph.output().path))
    # A dot would read as the index of a list, so a tap's argument is numbered.
    values = {f"tap{i}": graph.resolve(tap) for i, tap in enumerate(taps)}
    attrs = {**graph.output().attrs, "taps": list(taps)}
    record = Record(path=graph.output().path, op=OUTPUT, attrs=attrs)
    tapped.add(record, {**outputs, **values})
    return tapped
