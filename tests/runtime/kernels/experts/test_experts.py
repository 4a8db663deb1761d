"""Parts with experts, for the tokens that go to each, against the ops that define them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from comparing import check, draw, run
from torch import Tensor
from torch._dynamo import lookup_backend
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from multiway.compiler.graph.registry import registry
from multiway.compiler.lowering.dispatch import fast
from multiway.runtime.kernels import kernels
from multiway.runtime.kernels.experts.dispatch import Dispatch, _static, dispatch
from multiway.runtime.kernels.experts.grouped import (
    grouped_by_size,
    grouped_linear,
    grouped_outer,
    grouped_rows,
)
from multiway.specs.language.parts import ACTIVATIONS

D, F, G, X, MOST = 6, 5, 4, 4, 2
MATRICES = {"up": (F, D), "gate": (F, D), "down": (G, F)}
VECTORS = {"up_bias": (F,), "gate_bias": (F,), "down_bias": (G,), "gain": (F,), "shift": (F,)}

# What a call of moe_ffn has beside x, gates, up and down: parameters and attributes.
FFNS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("", {"kind": "gelu"}),
    "biases": ("up_bias down_bias", {"kind": "gelu_tanh"}),
    "gated": ("gate", {"kind": "silu"}),
    "gated biases": ("gate up_bias gate_bias down_bias", {"kind": "tanh"}),
    "layer norm": ("", {"kind": "relu", "norm": "layer_norm"}),
    "layer norm, gain, shift": ("gain shift", {"kind": "relu_squared", "norm": "layer_norm"}),
    "rms norm": ("gate down_bias", {"kind": "sigmoid", "norm": "rms_norm"}),
    "rms norm, gain": ("gate gain", {"kind": "silu", "norm": "rms_norm"}),
    "everything": (" ".join(VECTORS) + " gate", {"kind": "gelu", "norm": "layer_norm"}),
}
CALLS = [*(("moe_ffn", name) for name in FFNS)]
CALLS += [(op, case) for op in ("moe_linear", "moe_affine") for case in ("", "bias")]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


class Call:
    """One op with random parameters; `kernel` and `reference` take x, gates and `params`."""

    def __init__(self, op: str, case: str, *, experts: int = X, most: int = MOST) -> None:
        roles, attrs = FFNS[case] if op == "moe_ffn" else (case, {})
        shapes: dict[str, tuple[int, ...]]
        if op == "moe_ffn":
            attrs = {"norm": "", "eps": 1e-5, **attrs}
            shapes = {name: (MATRICES | VECTORS)[name] for name in ["up", "down", *roles.split()]}
        else:
            shapes = {"weight": (G, D) if op == "moe_linear" else (D,)}
            shapes |= {"bias": shapes["weight"][:1]} if roles else {}
        self.op, self.attrs = op, {**attrs, "count": experts, "most": most}
        self.names = list(shapes)
        self.params = [
            draw(experts, *shape, seed=i) for i, shape in enumerate(shapes.values(), start=3)
        ]

    def _bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor, gates: Tensor, *params: Tensor) -> Any:
            named = dict(zip(self.names, params, strict=True))
            return function(x, gates, **named, **self.attrs)

        return call

    @property
    def reference(self) -> Callable[..., Any]:
        return self._bound(registry()[self.op].reference)

    @property
    def kernel(self) -> Callable[..., Any]:
        return self._bound(kernels()[self.op].run)

    @property
    def fast(self) -> Callable[..., Any]:
        return self._bound(fast(self.op))


def guard(op: str) -> Callable[..., str | None]:
    """What a kernel says to a call."""
    takes = kernels()[op].takes
    assert takes is not None
    return takes


def used(*shape: int, seed: int = 0) -> Tensor:
    """Which experts each token of [B, T] goes to, MOST of X for each."""
    best = draw(*shape, X, seed=seed).topk(MOST).indices
    return torch.zeros(*shape, X, dtype=torch.bool).scatter(-1, best, True)


def without(mask: Tensor, expert: int) -> Tensor:
    return mask & (torch.arange(mask.shape[-1]) != expert)


# Which experts tokens go to [B, T, X], and how many of a token's gates are not 0 at most.
SITUATIONS: dict[str, tuple[Tensor, int]] = {
    "some": (used(2, 5), MOST),
    "one token": (used(1, 1), MOST),
    "no tokens": (used(2, 0), MOST),
    "no rows": (used(0, 3), MOST),
    "one expert": (torch.ones(2, 3, 1, dtype=torch.bool), 1),
    "nobody goes to the first": (without(used(2, 5), 0), MOST),
    "nobody goes to the last": (without(used(2, 5), X - 1), MOST),
    "all go to one": ((torch.arange(X) == 2).expand(2, 5, X), 1),
    "all go to all": (torch.ones(2, 3, X, dtype=torch.bool), X),
    "half go to none": (used(2, 6) & (torch.arange(6) % 2 == 0)[:, None], MOST),
    "nobody goes anywhere": (torch.zeros(2, 3, X, dtype=torch.bool), MOST),
    "any number": (torch.arange(X) < torch.arange(X + 1)[:, None].expand(2, -1, -1), 0),
}


def inputs_of(call: Call, mask: Tensor, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, scores and parameters; gates are scores where `mask` is, of either sign."""
    x, scores = draw(*mask.shape[:-1], D, seed=1), draw(*mask.shape, seed=2)
    return [each.to(dtype) for each in (x, scores, *call.params)]


def masked(function: Callable[..., Any], mask: Tensor) -> Callable[..., Any]:
    """With scores for gates: what a router has chosen is 0 elsewhere, and so is its gradient."""
    return lambda x, scores, *params: function(x, scores * mask, *params)


def both(call: Call, mask: Tensor, dtype: torch.dtype = torch.float64) -> None:
    check(masked(call.kernel, mask), masked(call.reference, mask), inputs_of(call, mask, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "case"), CALLS)
def test_a_part_with_experts_is_its_op(op: str, case: str, dtype: torch.dtype) -> None:
    both(Call(op, case), used(3, 11), dtype)


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize(("op", "case"), [("moe_ffn", "everything"), ("moe_linear", "bias")])
def test_wherever_tokens_go(op: str, case: str, situation: str) -> None:
    mask, most = SITUATIONS[situation]
    both(Call(op, case, experts=mask.shape[-1], most=most), mask)


def test_cases_have_every_activation() -> None:
    assert {attrs["kind"] for _, attrs in FFNS.values()} == set(ACTIVATIONS)


# Routers before it: a gate that is 0 has no gradient in a kernel, and gives none to its logits

ROUTERS: dict[str, Any] = {
    "softmax": {},
    "sigmoid": {"score": "sigmoid"},
    "normalised": {"normalise": True},
    "normalised sigmoids": {"score": "sigmoid", "normalise": True, "scale": 2.5},
    "groups": {"groups": 2, "kept": 1, "group_by": "top_2_sum"},
}


def routed(
    name: str, attrs: Mapping[str, Any], function: Callable[..., Any], logits: Tensor
) -> Callable[..., Any]:
    op = registry()[name]
    router = partial(op.reference, **op.full_attrs(attrs))
    assert logits.shape[-1] == X
    return lambda x, logits, *params: function(x, router(logits), *params)


@pytest.mark.parametrize("spread", [1.0, 1e4])
@pytest.mark.parametrize("router", ROUTERS)
def test_logits_of_top_k_get_the_gradient_of_the_op(router: str, spread: float) -> None:
    # Where logits are far apart, scores of chosen experts are 0 in every type.
    call, attrs = Call("moe_ffn", "gated biases"), {"k": MOST, **ROUTERS[router]}
    inputs = inputs_of(call, used(2, 7))
    inputs[1] = inputs[1] * spread
    functions = [routed("top_k_gates", attrs, f, inputs[1]) for f in (call.kernel, call.reference)]
    check(*functions, inputs)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_logits_of_expert_choice_get_the_gradient_of_the_op(factor: float) -> None:
    call = Call("moe_ffn", "gated biases", most=0)
    inputs = inputs_of(call, used(2, 7))
    attrs = {"factor": factor, "over": "row"}
    names = (call.kernel, call.reference)
    check(*[routed("expert_choice_gates", attrs, f, inputs[1]) for f in names], inputs)


# Rows


def dense(plan: Dispatch, tokens: int, experts: int) -> Tensor:
    """The gates [N, X] that a plan has rows for."""
    at = (plan.tokens, plan.experts)
    empty = torch.zeros(tokens, experts, dtype=plan.weights.dtype)
    return empty.index_put(at, plan.weights, accumulate=True)


def check_plan(plan: Dispatch, gates: Tensor) -> None:
    assert torch.equal(dense(plan, *gates.shape), gates)
    assert plan.experts.equal(plan.experts.sort().values)
    if isinstance(plan.groups, Tensor):
        assert plan.groups.dtype == torch.int32
        ends = [int((plan.experts <= x).sum()) for x in range(gates.shape[1])]
        assert plan.groups.tolist() == ends
    else:
        assert plan.groups == plan.experts.bincount(minlength=gates.shape[1]).tolist()


@pytest.mark.parametrize("situation", SITUATIONS)
def test_there_is_a_row_for_every_gate_that_is_not_0(situation: str) -> None:
    mask, most = SITUATIONS[situation]
    gates = (draw(*mask.shape) * mask).flatten(0, -2)
    plan = dispatch(gates, most)
    check_plan(plan, gates)
    assert len(plan.tokens) == int(mask.sum())


@pytest.mark.parametrize("situation", [name for name, (_, most) in SITUATIONS.items() if most])
def test_where_no_shape_depends_on_data_a_token_has_a_fixed_number_of_rows(situation: str) -> None:
    mask, most = SITUATIONS[situation]
    gates = (draw(*mask.shape) * mask).flatten(0, -2)
    plan, exact = _static(gates, most), dispatch(gates, most)
    check_plan(plan, gates)
    assert len(plan.tokens) == most * len(gates)
    real = plan.weights != 0
    assert torch.equal(plan.tokens[real], exact.tokens)
    assert torch.equal(plan.experts[real], exact.experts)


@pytest.fixture
def static(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows as for a compiler or a GPU."""
    for module in ("dispatch", "ops"):
        path = f"multiway.runtime.kernels.experts.{module}.is_static"
        monkeypatch.setattr(path, lambda gates: True)


@pytest.mark.usefixtures("static")
@pytest.mark.parametrize("situation", [name for name, (_, most) in SITUATIONS.items() if most])
def test_rows_that_nobody_asked_for_change_nothing(situation: str) -> None:
    mask, most = SITUATIONS[situation]
    both(Call("moe_ffn", "everything", experts=mask.shape[-1], most=most), mask)


def test_an_expert_that_nobody_goes_to_is_not_asked() -> None:
    call, mask = Call("moe_ffn", "rms norm, gain"), without(used(2, 5), 1)
    for parameter in call.params:
        parameter[1] = torch.nan  # which 0 times is no 0
    x, scores, *params = inputs_of(call, mask)
    assert call.reference(x, scores * mask, *params).isnan().all()
    assert call.kernel(x, scores * mask, *params).isfinite().all()


# Products of groups of rows


GROUPS = {
    "some": [2, 5, 7],
    "empty ones": [0, 3, 3],
    "one": [7],
    "rows behind the last": [2, 2, 5],
    "only empty ones": [0, 0],
}


@pytest.mark.parametrize("rows", [7, 0])
@pytest.mark.parametrize("groups", GROUPS)
def test_products_of_groups_are_those_of_their_rows(groups: str, rows: int) -> None:
    ends = torch.tensor(GROUPS[groups], dtype=torch.int32).clamp(max=rows)
    count, at = len(ends), [0, *ends.tolist()]

    def one_by_one(x: Tensor, weight: Tensor) -> Tensor:
        made = [x[at[i] : at[i + 1]] @ weight[i].mT for i in range(count)]
        return torch.cat([*made, x.new_zeros(rows - at[-1], G)])

    given = [draw(rows, D), draw(count, G, D)]
    check(lambda x, w: grouped_linear(x, w, ends), one_by_one, given)
    if at[-1] == rows:
        sizes = [end - start for start, end in itertools.pairwise(at)]
        check(lambda x, w: grouped_by_size(x, w, sizes), one_by_one, given)
        for fixed in ((0,), (1,)):
            check(lambda x, w: grouped_by_size(x, w, sizes), one_by_one, given, fixed)


@pytest.mark.parametrize("groups", ["empty ones", "rows behind the last"])
def test_operators_are_what_torch_expects_of_one(groups: str) -> None:
    ends = torch.tensor(GROUPS[groups], dtype=torch.int32)
    x, weight, grad = draw(7, D), draw(len(ends), G, D), draw(7, G)
    leaves = (x.requires_grad_(), weight.requires_grad_(), ends)
    torch.library.opcheck(grouped_linear, leaves)
    torch.library.opcheck(grouped_rows, (grad, weight.detach(), ends))
    torch.library.opcheck(grouped_outer, (grad, x.detach(), ends))


def test_a_second_backward_says_so() -> None:
    x, ends = draw(7, D).requires_grad_(), torch.tensor([2, 7], dtype=torch.int32)
    y = grouped_linear(x, draw(2, G, D), ends)
    (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        slope.sum().backward()
    y = grouped_by_size(x, draw(2, G, D), [2, 5])
    (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


# How it is called


def results(function: Callable[..., Any], inputs: list[Tensor], mask: Tensor) -> list[Tensor]:
    return run(masked(function, mask), inputs)


def close(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("op", ["moe_ffn", "moe_linear", "moe_affine"])
def test_any_one_gradient(op: str) -> None:
    call, mask = Call(op, "everything" if op == "moe_ffn" else "bias"), used(2, 5)
    inputs = inputs_of(call, mask)
    y, *whole = results(call.reference, inputs, mask)
    for i, slope in enumerate(whole):
        others = [j for j in range(len(inputs)) if j != i]
        found = run(masked(call.kernel, mask), inputs, fixed=others)
        close(found, [y, slope])


@pytest.mark.parametrize("op", ["moe_ffn", "moe_linear", "moe_affine"])
def test_arguments_may_have_any_strides(op: str) -> None:
    call, mask = Call(op, "everything" if op == "moe_ffn" else "bias"), used(3, 5)
    inputs = inputs_of(call, mask)
    odd = [each.transpose(0, -1).contiguous().transpose(0, -1) for each in inputs]
    assert not odd[0].is_contiguous()
    close(results(call.kernel, odd, mask), results(call.reference, inputs, mask))


def test_nothing_is_tracked_without_gradients() -> None:
    call, mask = Call("moe_ffn", "everything"), used(2, 5)
    inputs = inputs_of(call, mask)
    want, *_ = results(call.kernel, inputs, mask)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            found = masked(call.kernel, mask)(*inputs)
        assert torch.equal(found, want) and not found.requires_grad


def test_a_checkpoint_gives_the_same_gradients() -> None:
    call, mask = Call("moe_ffn", "everything"), used(2, 5)
    inputs, function = inputs_of(call, mask), masked(call.kernel, mask)
    again = partial(checkpoint, function, use_reentrant=False)
    close(run(again, inputs), run(function, inputs))


def test_one_graph_for_any_number_of_tokens() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, given: Any) -> Any:
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, given)

    call = Call("moe_ffn", "gated biases")
    compiled = torch.compile(call.kernel, fullgraph=True, dynamic=True, backend=backend)
    for shape in ((3, 7), (8, 9), (2, 11)):  # unlike all other sizes
        mask = used(*shape)
        inputs = inputs_of(call, mask)
        close(results(compiled, inputs, mask), results(call.reference, inputs, mask))
    (graph,) = graphs
    assert str(graph.graph).count("multiway.grouped_linear") == 3


# What is left to the reference

ANY_NUMBER = "a token may go to any number of experts"


def test_any_number_of_experts_needs_shapes_that_depend_on_data() -> None:
    call, (mask, _) = Call("moe_ffn", "gated", most=0), SITUATIONS["any number"]
    x, gates, *params = inputs_of(call, mask)
    gates = gates * mask
    takes = call._bound(guard("moe_ffn"))
    assert takes(x, gates, *params) is None
    assert takes(*[each.to("meta") for each in (x, gates, *params)]) == ANY_NUMBER
    known = Call("moe_ffn", "gated")._bound(guard("moe_ffn"))
    assert known(*[each.to("meta") for each in (x, gates, *params)]) is None
    compiled = torch.compile(call.fast, fullgraph=True, backend="aot_eager")
    want = results(call.reference, [x, gates, *params], mask)
    close(results(compiled, [x, gates, *params], mask), want)


@pytest.mark.parametrize("op", ["moe_ffn", "moe_linear", "moe_affine"])
def test_autocast_is_left_to_the_reference(op: str) -> None:
    call, mask = Call(op, "gated" if op == "moe_ffn" else ""), used(2, 5)
    x, scores, *params = inputs_of(call, mask, torch.float32)
    takes = call._bound(guard(op))
    assert takes(x, scores, *params) is None
    with torch.autocast("cpu"):
        assert takes(x, scores, *params) == "autocast chooses the types of products"
        found, want = (f(x, scores * mask, *params) for f in (call.fast, call.reference))
    assert torch.equal(found, want) and found.dtype == want.dtype


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_transforms_see_torchs_operators() -> None:
    call, mask = Call("moe_ffn", "gated biases"), used(2, 5)
    x, scores, *params = inputs_of(call, mask)
    gates, ways = scores * mask, draw(3, *x.shape)
    found = []
    for function in (call.fast, call.reference):
        of_x = partial(lambda f, x: f(x, gates, *params), function)
        with forward_ad.dual_level():
            pushed = forward_ad.unpack_dual(of_x(forward_ad.make_dual(x, ways[0]))).tangent
        assert pushed is not None and pushed.abs().max() > 0
        pulled = torch.func.grad(lambda x, of_x=of_x: of_x(x).square().sum())(x)
        found.append([pushed, torch.func.jvp(of_x, (x,), (ways[1],))[1], pulled])
        found[-1].append(torch.func.vmap(of_x)(ways))
    close(*found)
