"""The functions of `import multiway as mw`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from multiway.compiler.assemble.build import build as build_graph
from multiway.compiler.assemble.build import check_init
from multiway.compiler.graph.layer_graph import LayerGraph
from multiway.compiler.heads import kinds
from multiway.compiler.views.picture import to_svg
from multiway.runtime.checkpoints.rename import RenameTable
from multiway.specs import MultiwayError, Spec
from multiway.specs import load as load_spec
from multiway.specs.errors import one_of
from multiway.specs.text.source import Node
from multiway.zoo import catalogue

if TYPE_CHECKING:
    import torch

    from multiway.compiler.pipeline import Pass
    from multiway.runtime.checkpoints.weights import Loaded
    from multiway.runtime.model import Model

SpecLike = str | Path | Mapping[str, Any] | Node | Spec

LayerGraph.picture = to_svg  # here, because a graph may not import what draws it


def load(source: SpecLike, *, set: Mapping[str, Any] | None = None) -> Spec:
    """Reads and checks a spec: a zoo name, a path, a mapping. Raises MultiwayError.

    set: values to change, by path (`block.order`) or, without a dot, dims (`depth`). A Spec takes
        none: it is finished.
    """
    if isinstance(source, Spec):
        if set:
            raise MultiwayError.one(
                "finished-spec",
                f"{source.name} is loaded, and takes no settings any more: {', '.join(set)}",
                place="set",
                expected="settings where the spec is loaded: load(source, set=...)",
            )
        return source
    spec = load_spec(source, set=set, resolver=catalogue(), kinds=kinds())
    check_init(spec)
    return spec


def build(
    source: SpecLike,
    *,
    head: str | None = None,
    program: str | None = None,
    taps: Sequence[str] = (),
    set: Mapping[str, Any] | None = None,
) -> LayerGraph:
    """The layer graph of one program; `graph.nx` is the networkx graph. A notebook shows
    it as a picture. Imports no torch.

    head may be left out when the spec has one; program defaults to the head's main one.
    """
    return build_graph(load(source, set=set), head=head, program=program, taps=taps)


def compile(
    source: SpecLike,
    *,
    head: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    seed: int = 0,
    taps: Sequence[str] = (),
    weights: str | Path | None = None,
    fuse: bool = True,
    mode: Literal["train", "inference"] = "train",
    without: Sequence[str] = (),
    allow: Sequence[str] = (),
    memory_budget: int | None = None,
    sizes: Mapping[str, int] | None = None,
    passes: Sequence[Pass] = (),
    set: Mapping[str, Any] | None = None,
) -> Model:
    """A model that runs, with initial weights or those of a file. Raises MultiwayError.

    weights: a file that multiway wrote. For released checkpoints see `import_weights`.
    fuse: False gives the reference, which defines what every other form must compute.
    mode: "inference" takes no gradients, and may keep copies of weights with norms folded in.
    without: passes of the pipeline (compiler/pipeline.py) to leave out.
    allow: "approx" also runs passes that compute another formula.
    memory_budget: bytes that a training step may keep for its backward at `sizes`, such as
        {"B": 4, "T": 512}; values are made again in backward until it fits. See docs/compiler.md.
    passes: passes of one's own, which run behind those of the pipeline, or before one of them.
    """
    import torch

    from multiway.compiler.compile import compile_spec
    from multiway.compiler.pipeline import Options
    from multiway.runtime.checkpoints.weights import load_weights

    spec = load(source, set=set)
    options = Options(
        mode=mode,
        without=without,
        allow=allow,
        memory_budget=memory_budget,
        sizes=sizes or {},
        passes=passes,
    )
    model = compile_spec(
        spec,
        options=options if fuse else None,
        head=head,
        device=device,
        dtype=dtype or torch.float32,
        seed=seed,
        taps=taps,
        fill=weights is None,
    )
    if weights is not None:
        load_weights(model, weights)
    return model


def save(model: Model, path: str | Path) -> None:
    """Writes the weights of a model as safetensors under spec paths."""
    from multiway.runtime.checkpoints.weights import save_weights

    save_weights(model, path)


def rename_table(spec: Spec, family: str | None = None) -> RenameTable:
    """How the family of a spec names its parameters in released checkpoints.

    family: the folder of the zoo; default: the one the spec comes from. Raises MultiwayError.
    """
    zoo = catalogue()
    found = family or zoo.family_of(spec)
    if found is None or found not in zoo.families:
        raise MultiwayError.one(
            "unknown-family",
            f"{spec.name} is of no family whose checkpoints are known"
            if family is None
            else f"there is no family {family!r}",
            place="weights",
            expected=one_of(zoo.families),
        )
    return RenameTable(zoo.weights(found), {**spec.dims, "wiring": spec.wiring.use})


def import_weights(
    model: Model, path: str | Path, *, family: str | None = None, fresh_head: bool = False
) -> Loaded:
    """Reads a released checkpoint (.pth, .bin, .safetensors, shards) into a model.

    family: whose names the file has; default: the family of the spec. fresh_head: the head keeps
    its initial values. Raises MultiwayError, changing nothing, if the file does not fit.
    """
    from multiway.runtime.checkpoints.weights import load_weights

    return load_weights(model, path, table=rename_table(model.spec, family), fresh_head=fresh_head)


def export_weights(model: Model, path: str | Path, *, family: str | None = None) -> None:
    """Writes a model's weights under the names of its family's released files."""
    from multiway.runtime.checkpoints.weights import export_weights as write

    write(model, path, rename_table(model.spec, family))
