"""Parameters that are read together are those that attributes give, whatever was replaced."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable

import pytest
import torch
from torch import fx, nn
from torch.nn.utils import parametrize

import multiway as mw
from multiway.compiler.lowering.codegen import plain_code, read_together
from multiway.runtime.block import calls_of
from multiway.runtime.parameters.lookup import parameters

PATHS = ("norm.a.weight", "norm.a.bias", "norm.b.weight", "bias", "norm.kept")


def leaf(*names: str) -> nn.Module:
    module = nn.Module()
    for name in names:
        module.register_parameter(name, nn.Parameter(torch.randn(3)))
    return module


def tree() -> nn.Module:
    root, norm = leaf("bias"), nn.Module()
    root.add_module("norm", norm)
    norm.add_module("a", leaf("weight", "bias"))
    norm.add_module("b", leaf("weight"))
    norm.register_buffer("kept", torch.randn(2))
    assert same(root)  # so that they are kept before anything changes
    return root


def same(root: nn.Module) -> bool:
    found, given = parameters(root, PATHS), [operator.attrgetter(path)(root) for path in PATHS]
    return len(found) == len(given) and all(a is b for a, b in zip(found, given, strict=True))


def replace_a_parameter(root: nn.Module) -> None:
    root.norm.a.weight = nn.Parameter(torch.zeros(3))


def replace_a_buffer(root: nn.Module) -> None:
    root.norm.kept = torch.zeros(5)


def replace_a_part(root: nn.Module) -> None:
    root.norm.a = leaf("weight", "bias")


def replace_a_part_behind_its_back(root: nn.Module) -> None:
    root.norm._modules["b"] = leaf("weight")


def replace_all(root: nn.Module) -> None:
    root.norm = tree().norm


def convert(root: nn.Module) -> None:
    root.double()


def let_go(root: nn.Module) -> None:
    root.norm.a.bias = None


def make_it_a_plain_attribute(root: nn.Module) -> None:
    del root.norm.a.weight
    root.norm.a.weight = torch.ones(3)


def make_a_buffer_of_it(root: nn.Module) -> None:
    del root.norm.b.weight
    root.norm.b.register_buffer("weight", torch.ones(3))


def share_what_it_knows(root: nn.Module) -> None:
    other = tree()
    root.__dict__.update({**other.__dict__, "_reads": root.__dict__["_reads"]})


CHANGES = [
    *(replace_a_parameter, replace_a_buffer, replace_a_part, replace_a_part_behind_its_back),
    *(replace_all, convert, let_go, make_it_a_plain_attribute, make_a_buffer_of_it),
    share_what_it_knows,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_after_a_change_they_are_what_attributes_give(change: Callable[[nn.Module], None]) -> None:
    root = tree()
    change(root)
    assert same(root) and same(root)
    assert same(copy.deepcopy(root)) and same(copy.copy(root))


def test_a_parametrised_one() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    root = tree()
    weight = root.norm.a.weight
    parametrize.register_parametrization(root.norm.a, "weight", Twice())
    assert torch.equal(parameters(root, PATHS)[0], 2 * weight)
    parametrize.remove_parametrizations(root.norm.a, "weight", leave_parametrized=False)
    assert same(root) and torch.equal(root.norm.a.weight, weight)


def test_one_that_is_gone() -> None:
    root = tree()
    del root.norm.b.weight
    with pytest.raises(AttributeError, match="weight"):
        parameters(root, PATHS)
    del root.norm.a
    with pytest.raises(AttributeError, match="'a'"):
        parameters(root, PATHS)


def test_other_paths_of_the_same_module() -> None:
    root = tree()
    assert parameters(root, ("bias", "norm.b.weight"))[1] is root.norm.b.weight
    assert same(root)


def blocks() -> list[fx.GraphModule]:
    model = mw.compile("beit3-test", head="features")
    program = model.programs["forward"]
    return [program, *dict(calls_of(program)).values()]


def test_programs_read_their_parameters_together() -> None:
    for block in blocks():
        count = sum(node.op == "get_attr" for node in block.graph.nodes)
        assert count > 1
        assert block.code.count(" = self.") == 0 and block.code.count("_parameters(self, ") == 1
        assert plain_code(block.graph).count(" = self.") == count
        block.recompile()
        assert block.code.count("_parameters(self, ") == 1


def test_a_graph_that_is_changed_is_read_again() -> None:
    (_, block, *_) = blocks()
    node = next(each for each in block.graph.nodes if each.op == "get_attr")
    path = node.target
    parent = path.rpartition(".")[0]
    block.get_submodule(parent).register_parameter("other", nn.Parameter(torch.ones(1)))
    node.target = f"{parent}.other"
    block.recompile()
    assert f"'{parent}.other'" in block.code and f"'{path}'" not in block.code
    copied = copy.deepcopy(block)
    assert f"'{parent}.other'" in copied.code and "_parameters(self, " in copied.code


def test_any_name_is_read() -> None:
    """Names that stand as texts in code, one that nobody uses, and one behind the first call."""
    root = nn.Module()
    names = ("a-b", "0", "forward_", "plain", "unused")
    for i, name in enumerate(names):
        root.add_module(name, nn.Linear(1, i + 1, bias=False))
    graph = fx.Graph()
    read = [graph.get_attr(f"{name}.weight") for name in names[:3]]
    unused = graph.get_attr("unused.weight")
    total = graph.call_function(torch.cat, (read,))
    late = graph.get_attr("plain.weight")
    graph.output(graph.call_function(torch.cat, ([total, late],)))
    read_together(graph)
    module = fx.GraphModule(root, graph)
    want = torch.cat([root.get_submodule(name).weight for name in names[:4]])
    assert torch.equal(module(), want)
    paths = tuple(node.target for node in (*read, unused))
    assert f"multiway_parameters(self, {paths})" in module.code
    assert "getattr" not in module.code and module.code.count(" = self.") == 1
    assert plain_code(graph).count("self") == 1 + 5, "the function's own, and one a parameter"
    assert torch.equal(copy.deepcopy(module)(), want)


def test_programs_run_with_other_parameters() -> None:
    model = mw.compile("mudd-pythia-test")
    tokens = torch.arange(6)[None]
    before = model(tokens=tokens)
    state = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    program = model.programs["forward"]
    own = dict(program.named_parameters())
    swapped = torch.func.functional_call(
        program, {name: torch.zeros_like(p) for name, p in own.items()}, (tokens,)
    )
    assert before.any() and not swapped.any()
    assert torch.equal(model(tokens=tokens), before)
    model.load_state_dict(state, assign=True)
    assert not model(tokens=tokens).any()
