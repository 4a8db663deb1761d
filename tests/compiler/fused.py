"""Reference and fused models side by side, and what the passes made of a graph on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import torch
import yaml
from hypothesis import HealthCheck, Phase
from strategies import randomise
from test_properties import flat, some_sizes

import multiway as mw
from multiway.compiler.graph.layer_graph import LayerGraph
from multiway.compiler.pipeline import Options, Stages
from multiway.runtime.model import Model

Mappings = dict[str, Any]
PHASES = [Phase.explicit, Phase.generate, Phase.shrink]


def settings(examples: int) -> hypothesis.settings:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return hypothesis.settings(max_examples=examples, suppress_health_check=slow, phases=PHASES)


def pair(spec: mw.Spec, **options: Any) -> tuple[Model, Model]:
    """The reference and a fused model with the same random weights."""
    both = []
    taps = options.pop("taps", ())
    for more in ({"fuse": False}, options):
        model = mw.compile(spec, dtype=torch.float64, taps=taps, **more)
        randomise(model)
        both.append(model)
    return both[0], both[1]


def outputs(model: Model, program: str, given: Mappings) -> list[torch.Tensor]:
    torch.manual_seed(0)  # of the noise of routers
    return flat(model.run(program, **given))


def gradients(model: Model, found: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients of a fixed random functional of the outputs, zeros where nothing is read."""
    generator = torch.Generator().manual_seed(7)
    total = torch.zeros((), dtype=torch.float64)
    for value in found:
        if value.is_floating_point() and value.requires_grad:
            factor = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            total = total + (value * factor).sum()
    if not total.requires_grad:
        return {}
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    made = torch.autograd.grad(total, list(params.values()), allow_unused=True)
    zipped = zip(params.items(), made, strict=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zipped}


def assert_equal(spec: mw.Spec, program: str, given: Mappings, **options: Any) -> None:
    """Outputs, and in training every gradient, of the reference and the fused program."""
    reference, fused = pair(spec, **options)
    want, got = outputs(reference, program, given), outputs(fused, program, given)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    if options.get("mode") != "inference":
        wanted, found = gradients(reference, want), gradients(fused, got)
        assert wanted.keys() == found.keys()
        scale = max((float(g.abs().max()) for g in wanted.values() if g.numel()), default=0.0)
        for name, gradient in wanted.items():
            torch.testing.assert_close(
                found[name],
                gradient,
                rtol=1e-7,
                atol=1e-10 * (1 + scale),
                msg=f"gradient of {name}",
            )


def heads(spec: Mappings) -> Iterator[mw.Spec]:
    hypothesis.note(yaml.safe_dump(spec, sort_keys=False))
    whole = mw.load(spec)
    for name in whole.heads:
        yield whole.for_head(name)


def sizes_for(graph: LayerGraph) -> dict[str, int]:
    return {**some_sizes(graph, 4), "S": 64}


def member(name: str) -> mw.Spec:
    """A zoo entry, `ENTRY+WIRING`: one with another wiring, or `ENTRY/ROUTE`: with experts in
    norms, attention and feed-forward parts."""
    entry, _, wiring = name.partition("+")
    entry, _, route = entry.partition("/")
    changes: Mappings = {"wiring.use": wiring} if wiring else {}
    if route:
        experts = {"route": route, "count": 3, "k": 2}
        changes |= {f"block.{part}.experts": experts for part in ("norm", "attention", "ffn")}
    return mw.load(entry, set=changes)


def stages(name: str, program: str = "forward", **options: Any) -> dict[str, Any]:
    whole = member(name)
    head = options.pop("head", next(iter(whole.heads)))
    found = Stages(whole.for_head(head), Options(**options))[program]
    return {stage.name: stage for stage in found}
