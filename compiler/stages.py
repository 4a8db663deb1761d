"""The layer graphs of a spec's programs at every stage of the pipeline. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from multiway.compiler.assemble.build import build
from multiway.compiler.graph.verify import verify
from multiway.compiler.matching.match import Tally
from multiway.compiler.pipeline import Options, Stage, run
from multiway.specs.spec import Spec


class Stages(dict[str, list[Stage]]):
    """The layer graphs of a spec's programs at every stage, made when first asked for. Without
    options there is one stage: the graph as built.
    """

    def __init__(self, spec: Spec, options: Options | None, taps: Sequence[str] = ()) -> None:
        super().__init__()
        self.spec, self.options, self.taps = spec, options, taps

    def __missing__(self, name: str) -> list[Stage]:
        graph = build(self.spec, program=name, taps=self.taps)
        verify(graph)
        if self.options is None:
            self[name] = [Stage(name="built", graph=graph, tally=Tally(), seconds=0.0)]
        else:
            self[name] = run(graph, self.options)
        return self[name]
