"""What a well-formed wiring can still get wrong: sources that do not exist, parts that exclude one
another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multiway.specs.errors import MultiwayError, Report, Span, one_of
from multiway.specs.language.wiring import Lanes, Manifold, Mix

if TYPE_CHECKING:
    from multiway.specs.spec import Spec


def check_wiring(spec: Spec, report: Report) -> None:
    """Adds every problem of the spec's wiring to the report."""
    wiring, before = spec.wiring, len(report.problems)
    for name, mix in wiring.mixes():
        _check_streams(mix, report)
        _check_weights(spec, mix, report)
        _check_sources(mix, report)
        if len(report.problems) == before:
            _check_source_lists(spec, name, mix, report)
    if wiring.lanes is not None:
        _check_lanes(spec, wiring.lanes, report)
    if len(report.problems) == before:
        _check_unread_sums(spec, report)
        _check_replaced_residual(spec, report)
    residual = wiring.residual
    if residual is not None and residual.balance and residual.keep:
        message = "balance learns what is kept, so keep has no meaning"
        span = residual.span("keep")
        report.add("wiring-conflict", message, span=span, expected="keep or balance")


def _conflict(report: Report, mix: Mix | Lanes, key: str, message: str, expected: str) -> None:
    report.add("wiring-conflict", message, span=mix.span(key), expected=expected)


def _check_streams(mix: Mix, report: Report) -> None:
    streams = set(mix.streams)
    if not streams:
        report.add(
            "empty-stream",
            "this mix is for no stream",
            span=mix.span("streams"),
            expected="some of q, k, v, r, x, value; or no mix at all",
        )
    if "value" in streams and len(streams) > 1:
        message = "the projected value has sources of its own, so it is mixed alone"
        _conflict(report, mix, "streams", message, "a further entry of edges for it")
    if "x" in streams and streams & set("qkv"):
        message = "x is q, k and v together"
        _conflict(report, mix, "streams", message, "x, or some of q, k and v")
    if "value" in streams:
        _check_value(mix, report)
    if mix.sum_norm is not None and not set(mix.sum_norm.streams) <= streams:
        message = "the sum of a stream that is not mixed has no norm"
        span = mix.sum_norm.span("streams")
        report.add("wiring-conflict", message, span=span, expected=one_of(mix.streams))


def _check_value(mix: Mix, report: Report) -> None:
    for key in ("source_norm", "sum_norm"):
        if getattr(mix, key) is not None:
            message = f"{key} is for hiddens, not for projected values"
            _conflict(report, mix, key, message, f"no {key}")
    if mix.at == "sublayer":
        message = "a block has one projected value, so blocks read and are read"
        _conflict(report, mix, "at", message, "at: block")
    if mix.of == "change":
        message = "projected values are neither hiddens nor changes"
        _conflict(report, mix, "of", message, "no of")


def _check_weights(spec: Spec, mix: Mix, report: Report) -> None:
    learned = mix.static is not None or mix.generator is not None
    kinds = [learned, mix.router is not None, mix.fixed is not None]
    if not any(kinds):
        report.add(
            "missing-key",
            "streams are mixed, but nothing gives the weights",
            span=mix.span("streams"),
            expected="static, generator, both, router or fixed",
        )
    if sum(kinds) > 1:
        key = "router" if mix.router is not None else "fixed"
        message = f"{key} gives all weights, so nothing else does"
        _conflict(report, mix, key, message, "static and generator, or router, or fixed")
    if mix.router is not None:
        if spec.width % mix.router.groups:
            report.add(
                "indivisible",
                f"width {spec.width} is not a multiple of {mix.router.groups} groups",
                span=mix.router.span("groups"),
                expected="groups that divide the width",
                notes=(("width", f"at {spec.tree['dims']['width'].span}"),),
            )
        if "value" in mix.streams:
            message = "a router is for hiddens, not for projected values"
            _conflict(report, mix, "router", message, "static or generator")
    complement = mix.static is not None and mix.static.complement
    if complement and (mix.generator is not None or len(mix.streams) > 1):
        message = "complement is one learned number for one stream"
        _conflict(report, mix, "static", message, "one stream, and no generator")
    if mix.static is not None and complement and mix.static.columns == "all":
        message = "complement is one learned number, so there are no columns"
        span = mix.static.span("columns")
        report.add("wiring-conflict", message, span=span, expected="complement or columns")


def _check_sources(mix: Mix, report: Report) -> None:
    if mix.sources and mix.dilation > 1:
        message = "the sources are given one by one, so dilation has no meaning"
        _conflict(report, mix, "dilation", message, "sources, or dilation")
    if mix.of == "hidden" and mix.group > 1:
        message = "only changes are summed in groups"
        _conflict(report, mix, "group", message, "of: change")
    if mix.of == "hidden" and not mix.partial:
        message = "only changes are summed in groups, so none is unfinished"
        _conflict(report, mix, "partial", message, "of: change")
    if mix.of == "change" and mix.dilation > 1 and mix.group > 1:
        message = "sums of groups have no dilation"
        _conflict(report, mix, "dilation", message, "group or dilation")
    if mix.of == "change" and mix.sources and mix.group > 1:
        message = "sums of groups are not named one by one"
        _conflict(report, mix, "sources", message, "group or sources")
    if mix.sources and mix.source_norm is not None:
        message = "source_norm is for whole histories"
        _conflict(report, mix, "source_norm", message, "sources or source_norm")
    if mix.at == "sublayer" and mix.source_norm is not None:
        message = "source_norm is for sources that blocks read"
        _conflict(report, mix, "source_norm", message, "at: block, or no source_norm")


def _check_source_lists(spec: Spec, name: str, mix: Mix, report: Report) -> None:
    """Sources that exist, for every reader; one problem is enough."""
    try:
        found = list(zip(spec.connections.sites, spec.connections.readings(name), strict=True))
    except MultiwayError as error:
        report.extend(error)
        return
    read = [(site, each) for site, each in found if each is not None]
    if not read and mix.where is not None:
        _add_unread(spec, mix.where.node.span, report)
    if mix.static is not None and mix.static.complement:
        for site, each in read:
            if len(each.sources) != 2:
                report.add(
                    "wiring-conflict",
                    f"complement is for two sources, and block {site.layer} reads "
                    f"{len(each.sources)}",
                    span=mix.static.span("complement"),
                    expected="sources: [0, newest], for instance",
                )
                break
    if "value" in mix.streams:
        _check_value_widths(spec, mix, report)


def _add_unread(spec: Spec, where: Span, report: Report) -> None:
    """A test that holds nowhere is a mistake of whoever wrote it. In a named wiring it may come of
    a depth that its author did not think of: then the model is one without this mix."""
    add = report.warn if where.file == spec.wiring_file else report.add
    expected = f"a test that holds for some layer of 1 to {spec.depth}, the output"
    add("empty-stream", "no block mixes by this", span=where, expected=expected)


def _check_value_widths(spec: Spec, mix: Mix, report: Report) -> None:
    widths = {}
    for layer, block in enumerate(spec.blocks):
        attention = block.attention
        head = attention.head_width or spec.width // attention.heads
        widths[layer] = head * (attention.kv_heads or attention.heads)
    for layer, width in widths.items():
        if width != widths[0]:
            report.add(
                "wiring-conflict",
                f"projected values are {widths[0]} wide in block 0 and {width} in block {layer}",
                span=mix.span("streams"),
                expected="one width of all projected values",
                notes=(("block", f"at {spec.blocks[layer].attention.node.span}"),),
            )
            return


def _check_lanes(spec: Spec, lanes: Lanes, report: Report) -> None:
    wiring = spec.wiring
    if lanes.split and spec.width % lanes.count:
        report.add(
            "indivisible",
            f"width {spec.width} cannot be cut into {lanes.count} lanes",
            span=lanes.span("count"),
            expected="a divisor of the width",
            notes=(("width", f"at {spec.tree['dims']['width'].span}"),),
        )
    for _, mix in wiring.mixes():
        if "value" not in mix.streams:
            message = "lanes take the place of the residual stream, so there is none to mix"
            _conflict(report, mix, "streams", message, "lanes, or a mix; with lanes only of value")
        elif mix.generator is not None:
            message = "with lanes there is no newest hidden that could make weights"
            _conflict(report, mix, "generator", message, "static or fixed")
    if "sum" in wiring.norms:
        message = "lanes are written, not summed, so no norm can stand on the sum"
        span = wiring.span("norms")
        report.add("wiring-conflict", message, span=span, expected="norms: input, output or both")
    residual = wiring.residual
    if residual is not None and (residual.keep or residual.balance or residual.low_rank):
        message = "lanes decide what is kept of the stream"
        span = wiring.span("residual")
        report.add("wiring-conflict", message, span=span, expected="residual: {gain: ...} at most")
    manifold = isinstance(lanes.weights, Manifold)
    if lanes.split and manifold:
        message = "pieces of the width are for hyper weights"
        _conflict(report, lanes, "split", message, "weights: {kind: hyper}, or copies")
    if isinstance(lanes.weights, Manifold):
        _check_norm_root(spec, lanes.weights, report)
    if lanes.output == "weighted" and not manifold:
        message = "a weighted output needs the gates of manifold weights"
        _conflict(report, lanes, "output", message, "sum, or weights: {kind: manifold}")
    if lanes.split and lanes.node.get("output") is not None:
        message = "pieces of the width are laid end to end in the output"
        _conflict(report, lanes, "output", message, "no output")


def _check_unread_sums(spec: Spec, report: Report) -> None:
    """No mix may take the place of a sum that nobody has read; one problem is enough."""
    for site in spec.connections.sites:
        made: dict[tuple[str, str], Mix] = {}
        streams = dict.fromkeys(("q", "k", "v", "x", "r", "value"), _Stream())
        for name, mix in spec.wiring.mixes():
            found = spec.connections.reading(name, site)
            ways = found.ways if found is not None else ()
            made |= {(name, way): mix for way in ways}
            streams = _streams_after(streams, name, mix, ways)
        read = {"ffn": "xr", "output": "r", "attention": "qkvr"}.get(site.part, "qkvxr")
        kept = {sums for stream in (*read, "value") for sums in streams[stream].sums}
        for (name, way), mix in made.items():
            if (name, way) not in kept:
                report.add(
                    "wiring-conflict",
                    f"nothing reads this sum of {way} in {site.path}, because other sums stand in "
                    "its place",
                    span=mix.span("streams"),
                    expected="add: true in a later edge, another stream, or a `where` that leaves "
                    "this reader out",
                )
                return


class _Stream:
    """What a stream holds: the sums in it. Streams that hold one object read the same."""

    def __init__(self, *sums: tuple[str, str]) -> None:
        self.sums = frozenset(sums)


def _streams_after(
    streams: dict[str, _Stream], name: str, mix: Mix, ways: tuple[str, ...]
) -> dict[str, _Stream]:
    """The streams behind a mix. What read the same as r, or of q, k and v as x, goes with it."""
    new = {way: _Stream((name, way), *(streams[way].sums if mix.add else ())) for way in ways}
    found = dict(streams)
    for wide, narrow in (("r", "qkvx"), ("x", "qkv")):
        for stream in narrow if wide in new else "":
            if streams[stream] is streams[wide]:
                found[stream] = new[wide]
    return {**found, **new}


def _check_replaced_residual(spec: Spec, report: Report) -> None:
    """Where sums stand for the residual stream everywhere, nothing is left to keep or to norm."""
    wiring = spec.wiring
    mixes = [(name, mix) for name, mix in wiring.mixes() if "value" not in mix.streams]
    if len(mixes) != 1 or any(mix.generator for _, mix in wiring.mixes()):
        return
    ((name, mix),) = mixes
    found = spec.connections.readings(name)[1:]
    if mix.of == "hidden" or mix.add or not all(each and "r" in each.ways for each in found):
        return
    message = "the mix stands for the residual stream everywhere, so nothing joins it"
    residual = wiring.residual
    if residual is not None and (residual.keep or residual.balance or residual.low_rank):
        span = wiring.span("residual")
        report.add("wiring-conflict", message, span=span, expected="residual: {gain: ...} at most")
    if "sum" in wiring.norms:
        span = wiring.span("norms")
        report.add("wiring-conflict", message, span=span, expected="norms: input, output or both")


def _check_norm_root(spec: Spec, weights: Manifold, report: Report) -> None:
    """`root: outside` is for a norm that has nothing but a root and a gain."""
    norm = weights.norm
    kind = "rms_norm" if norm is None else norm.kind or spec.blocks[0].norm.kind
    if weights.root == "outside" and (kind != "rms_norm" or (norm is not None and norm.bias)):
        report.add(
            "wiring-conflict",
            "eps outside of the root is for rms_norm without bias",
            span=weights.span("root"),
            expected="root: inside, or norm: {kind: rms_norm}",
        )
