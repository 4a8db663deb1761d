"""What holds for every spec: random whole specs through building, lowering, running, decoding.

The fuzz tests at the end are not in the default run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from second import Second
from strategies import CONTEXT, VOCAB, random_inputs, randomise, sizes_of, specs

import multiway as mw
from multiway.compiler.assemble.build import program_names
from multiway.compiler.graph.layer_graph import LayerGraph
from multiway.compiler.graph.rewrite import Tally
from multiway.compiler.graph.types import Tensor, number
from multiway.compiler.graph.verify import verify
from multiway.compiler.heads import kinds
from multiway.compiler.heads.classification import base_input
from multiway.compiler.lowering.check import corresponds
from multiway.compiler.passes.drop_dead import drop_dead
from multiway.compiler.views.text import to_text
from multiway.runtime.model import Model
from multiway.specs.checks.routing import routings
from multiway.specs.language.inputs import Form
from multiway.specs.language.routing import Chosen, chosen

Mappings = dict[str, Any]
SLOW_DRAWS = [HealthCheck.too_slow, HealthCheck.data_too_large]
PHASES = [Phase.explicit, Phase.generate, Phase.shrink]  # explaining a failure takes minutes


def settings(examples: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=examples, suppress_health_check=SLOW_DRAWS, phases=PHASES
    )


def loaded(spec: Mappings) -> mw.Spec:
    """The spec, printed as YAML should a test of random ones fail."""
    if hypothesis.currently_in_test_context():
        hypothesis.note(yaml.safe_dump(spec, sort_keys=False))
    return mw.load(spec)


def heads(spec: Mappings) -> Iterator[mw.Spec]:
    """The spec as each of its heads has it."""
    whole = loaded(spec)
    for name in whole.heads:
        yield whole.for_head(name)


def model_of(spec: mw.Spec) -> Model:
    """The reference: what passes make of it is tested in test_fusing.py."""
    model = mw.compile(spec, dtype=torch.float64, fuse=False)
    randomise(model)
    return model


def some_sizes(graph: LayerGraph, length: int) -> dict[str, int]:
    """Numbers for the named sizes of a program, all different where they may be."""
    found = {"B": 2}
    for i, name in enumerate(n for n in sizes_of(graph) if n not in ("B", "S")):
        found[name] = length + i
    return {**found, "S": 3 * CONTEXT + 12}  # room for everything that fits the inputs


def flat(value: Any) -> list[Any]:
    """Tensors of a program's result, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in flat(item)]
    return [value]


def check_graph(spec: Mappings) -> None:
    for each in heads(spec):
        for program in program_names(each):
            graph = mw.build(each, program=program)
            verify(graph)
            assert to_text(graph) == to_text(mw.build(each, program=program))
            plain = graph.to_json()
            again = LayerGraph.from_json(json.loads(json.dumps(plain)))
            assert again.to_json() == plain
            assert to_text(again, fold=False) == to_text(graph, fold=False)
            assert again.params == graph.params
            verify(again)


def check_run(spec: Mappings, length: int) -> None:
    for each in heads(spec):
        model = model_of(each)
        for program in program_names(each):
            graph = mw.build(each, program=program)
            module = model.programs[program]
            assert corresponds(graph, module)
            sizes = some_sizes(graph, length)
            with torch.no_grad():
                result = model.run(program, **random_inputs(graph, sizes))
            wanted = [graph.type(v) for v in graph.sources(graph.output().path).values()]
            got = flat(result)
            assert len(got) == len(wanted)
            for tensor, kind in zip(got, wanted, strict=True):
                assert isinstance(kind, Tensor)
                assert list(tensor.shape) == [number(d, sizes) for d in kind.shape]
                assert tensor.is_floating_point() == (kind.dtype == "float")
                assert torch.isfinite(tensor).all()


def check_gradients(spec: Mappings, length: int) -> None:
    for each in heads(spec):
        programs = program_names(each)
        program = "loss" if "loss" in programs else programs[0]
        model, graph = model_of(each), mw.build(each, program=program)
        result = flat(model.run(program, **random_inputs(graph, some_sizes(graph, length))))[0]
        result.sum().backward()
        live = drop_dead(graph, Tally())  # a value that an edge replaces is read by nothing
        read = {path for record in live for path in record.params.values()}
        own = dict(model.named_parameters())
        assert read <= own.keys()
        for path, parameter in own.items():
            if path in read and parameter.requires_grad:
                assert parameter.grad is not None, path
                assert torch.isfinite(parameter.grad).all(), path
            else:
                assert parameter.grad is None, path


class Dialogue:
    """Rows of text of different lengths that are read, and written on, with a cache."""

    def __init__(self, model: Model, prompts: list[int], written: int) -> None:
        self.model, self.prompts, self.written = model, prompts, written
        graph = mw.build(model.spec, program="prefill")
        sizes = some_sizes(graph, max(prompts) + written) | {"B": len(prompts)}
        given = random_inputs(graph, sizes)
        names = [record.path.removeprefix("inputs.") for record in graph.inputs()]
        # The last input but for the cache is the text.
        *self.others, self.text_name, _ = names
        self.given, self.text = given, given[self.text_name]
        if self.text.shape[1] < max(prompts) + written:
            raise AssertionError("the drawn text is too short")
        self.cache = given["cache"]  # random values: what is not written must not be seen

    def expected(self) -> list[torch.Tensor]:
        """Logits [T, V] of every row alone, without padding and without cache."""
        rows = []
        for row, prompt in enumerate(self.prompts):
            alone = {name: self.given[name][row : row + 1] for name in self.others}
            text = self.text[row : row + 1, : prompt + self.written]
            rows.append(self.model.run("forward", **alone, **{self.text_name: text})[0])
        return rows

    def prefill(self) -> torch.Tensor:
        """Logits of the prompts, laid in one batch with other tokens behind the shorter ones."""
        generator = torch.Generator().manual_seed(1)
        text = torch.randint(0, VOCAB, (len(self.prompts), max(self.prompts)), generator=generator)
        for row, prompt in enumerate(self.prompts):
            text[row, :prompt] = self.text[row, :prompt]
        others = {name: self.given[name] for name in self.others}
        given = {**others, self.text_name: text, "cache": self.cache}
        logits, self.cache = self.model.run("prefill", **given)
        return logits

    def decode(self, start: int, count: int, *, wrong: bool = False) -> torch.Tensor:
        """Logits of `count` more tokens of every row; `wrong`: of other tokens at their places."""
        positions = torch.tensor([[p + start + i for i in range(count)] for p in self.prompts])
        text = self.text.gather(1, positions)
        given = {self.text_name: (text + 1) % VOCAB if wrong else text, "positions": positions}
        logits, self.cache = self.model.run("decode", **given, cache=self.cache)
        return logits


@torch.no_grad()
def check_decoding(spec: Mappings, prompts: list[int], chunks: list[int]) -> None:
    for each in heads(spec):
        if "decode" not in program_names(each) or not all(r.causal for r in routers(each)):
            continue
        talk = Dialogue(model_of(each), prompts, sum(chunks))
        expected = talk.expected()
        prefilled = talk.prefill()
        for row, prompt in enumerate(prompts):
            torch.testing.assert_close(prefilled[row, :prompt], expected[row][:prompt])
        start = 0
        for i, count in enumerate(chunks):
            if i % 2 == 0:  # not each time: what two calls exchange, they exchange back
                talk.decode(start, count, wrong=True)  # is written over, and leaves no trace
            logits = talk.decode(start, count)
            for row, prompt in enumerate(prompts):
                want = expected[row][prompt + start : prompt + start + count]
                torch.testing.assert_close(logits[row], want)
            start += count


def kept_tokens(spec: mw.Spec, program: str, given: Mappings) -> torch.Tensor:
    """Which tokens [B, T] of the features of a program are no padding."""
    parts = []
    for record in mw.build(spec, program=program).inputs():
        name = record.path.removeprefix("inputs.")
        if name not in spec.inputs:
            continue
        value = given[name]
        tokens = spec.tokens_of(name) if spec.inputs[name].form() == Form.IMAGE else value.shape[1]
        none = torch.zeros(len(value), int(tokens or 0), dtype=torch.bool)
        parts.append(~given.get(f"{name}_padding", none))
    return torch.cat(parts, 1)


@torch.no_grad()
def check_padding(spec: Mappings, length: int) -> None:
    for each in heads(spec):
        model = None
        for program in program_names(each):
            if program in ("loss", "prefill", "decode"):
                continue
            graph = mw.build(each, program=program)
            given = random_inputs(graph, some_sizes(graph, length))
            padded = [n.removesuffix("_padding") for n in given if n.endswith("_padding")]
            crossing = any(rows_compete(router) for router in routers(each))
            if not padded or shifts_positions(each, padded) or crossing:
                continue
            firsts: dict[str | None, str] = {}
            for name in padded:  # passes are laid along the batch: one length for all of them
                first = firsts.setdefault(base_input(each, name), name)
                given[f"{name}_padding"] = given[f"{first}_padding"]
            model = model or model_of(each)
            whole = model.run(program, **given)
            for row in range(len(whole)):
                alone = {
                    name: value[row : row + 1]
                    for name, value in given.items()
                    if not name.endswith("_padding")
                }
                for name in padded:
                    kept = int((~given[f"{name}_padding"][row]).sum())
                    alone[name] = alone[name][:, :kept]
                want, got = model.run(program, **alone)[0], whole[row]
                if each.head.kind == "features":
                    got = got[kept_tokens(each, program, given)[row]]
                torch.testing.assert_close(got[: len(want)], want)


def routers(spec: mw.Spec) -> list[Chosen]:
    found = (chosen(experts) for _, experts in routings(spec))
    return [each for each in found if each is not None]


def rows_compete(router: Chosen) -> bool:
    """Whether what a row gets depends on the others of its batch."""
    capacity = getattr(router, "capacity", None)
    return "batch" in (getattr(router, "over", ""), capacity.over if capacity else "")


def has_padding(spec: Mappings) -> bool:
    return any(each.get("padding") == "right" for each in spec["inputs"].values())


def shifts_positions(spec: mw.Spec, padded: list[str]) -> bool:
    """Whether a row without its padding has other rotary positions behind the padded input."""
    rotary = any(block.attention.position is not None for block in spec.blocks)
    *first, _ = spec.head.inputs(spec)
    bases = {base_input(spec, name) for name in padded}
    return rotary and bool(bases & set(first))


@torch.no_grad()
def check_second(spec: Mappings, length: int) -> None:
    for each in heads(spec):
        if each.head.kind not in ("features", "causal_lm"):
            continue
        model = mw.compile(each, dtype=torch.float64, taps=["output"])
        randomise(model)
        params = {name: p.detach() for name, p in model.named_parameters()}
        for program in program_names(each):
            if program in ("loss", "prefill", "decode"):
                continue
            graph = mw.build(each, program=program)
            given = random_inputs(graph, some_sizes(graph, length))
            names = [name for name in each.head.inputs(each) if name in given]
            *_, taps = model.run(program, **given)
            kept = kept_tokens(each, program, given)  # what stands at padding has no meaning
            want = Second(each, params, names)(given)
            torch.testing.assert_close(taps["output"][kept], want[kept])


@given(specs(["features", "causal_lm"]), st.integers(1, 5))
@settings(20)
def test_the_trunk_is_what_the_language_says(spec: Mappings, length: int) -> None:
    check_second(spec, length)


@given(specs())
@settings(20)
def test_every_program_builds_verifies_prints_and_survives_json(spec: Mappings) -> None:
    check_graph(spec)


@given(specs(), st.integers(1, 5))
@settings(20)
def test_every_program_runs_as_its_graph_says(spec: Mappings, length: int) -> None:
    check_run(spec, length)


@given(specs(), st.integers(1, 5))
@settings(20)
def test_every_parameter_that_is_read_gets_a_gradient(spec: Mappings, length: int) -> None:
    check_gradients(spec, length)


@pytest.mark.parametrize("kind", sorted(kinds().classes))
def test_the_strategy_draws_every_head_kind(kind: str) -> None:
    def has_it(spec: Mappings) -> bool:
        return any(head["kind"] == kind for head in spec["heads"].values())

    drawn = hypothesis.settings(settings(200), database=None, phases=[Phase.generate])
    assert has_it(hypothesis.find(specs(), has_it, settings=drawn))


PROMPTS = st.lists(st.integers(1, 4), min_size=1, max_size=3)
CHUNKS = st.lists(st.integers(1, 3), max_size=3)


@given(specs(["causal_lm", "prefix_lm"]), PROMPTS, CHUNKS)
@settings(20)
def test_decoding_with_a_cache_is_the_whole_forward(
    spec: Mappings, prompts: list[int], chunks: list[int]
) -> None:
    check_decoding(spec, prompts, chunks)


@given(specs().filter(has_padding), st.integers(2, 5))
@settings(20)
def test_right_padding_changes_no_token_that_is_kept(spec: Mappings, length: int) -> None:
    check_padding(spec, length)


# The same on many more specs, other ones on each run


def fuzz(
    *strategies: st.SearchStrategy[Any],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        many = hypothesis.settings(settings(300), derandomize=False)
        return pytest.mark.fuzz(pytest.mark.timeout(3600)(many(given(*strategies)(test))))

    return decorate


@fuzz(specs())
def test_fuzz_graphs(spec: Mappings) -> None:
    check_graph(spec)


@fuzz(specs(), st.integers(1, 5))
def test_fuzz_running(spec: Mappings, length: int) -> None:
    check_run(spec, length)


@fuzz(specs(["features", "causal_lm"]), st.integers(1, 5))
def test_fuzz_meaning(spec: Mappings, length: int) -> None:
    check_second(spec, length)


@fuzz(specs(), st.integers(1, 5))
def test_fuzz_gradients(spec: Mappings, length: int) -> None:
    check_gradients(spec, length)


@fuzz(specs(["causal_lm", "prefix_lm"]), PROMPTS, CHUNKS)
def test_fuzz_decoding(spec: Mappings, prompts: list[int], chunks: list[int]) -> None:
    check_decoding(spec, prompts, chunks)


@fuzz(specs().filter(has_padding), st.integers(2, 5))
def test_fuzz_padding(spec: Mappings, length: int) -> None:
    check_padding(spec, length)
