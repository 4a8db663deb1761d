"""Several linears as one product, and parameters that lie one behind the other."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from comparing import check, draw
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from multiway.runtime.kernels import packed_linear


def plain_linears(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    """What packed_linear computes: weights first, then biases."""
    count = len(parameters) // 2
    pairs = zip(parameters[:count], parameters[count:], strict=True)
    return tuple(nn.functional.linear(x, w, b) for w, b in pairs)


def packed_linears(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    count = len(parameters) // 2
    return packed_linear.packed_linear(x, parameters[:count], parameters[count:])


@pytest.fixture
def every_path(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No call is too small for the faster paths."""
    monkeypatch.setattr(packed_linear, "LARGE_PRODUCT", 0)
    monkeypatch.setattr(packed_linear, "MANY_TOKENS", 0)
    return monkeypatch


def parts(widths: Sequence[int], *trailing: int, dtype: torch.dtype) -> list[Tensor]:
    """Tensors one behind the other in one storage."""
    return list(draw(sum(widths), *trailing, dtype=dtype).split(list(widths)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["adjacent", "concatenated", "apart"])
@pytest.mark.parametrize("fixed", [(), (0,), (1, 2), (1, 2, 3), (4, 5, 6), (2, 6)])
@pytest.mark.parametrize("shape", [(2, 5, 7), (7,), (0, 7)])
def test_packed_linear(
    every_path: pytest.MonkeyPatch,
    dtype: torch.dtype,
    way: str,
    fixed: tuple[int, ...],
    shape: tuple[int, ...],
) -> None:
    if way == "apart":
        every_path.setattr(packed_linear, "_one_product", lambda *_: False)
    widths = (3, 5, 2)
    parameters = [*parts(widths, 7, dtype=dtype), *parts(widths, dtype=dtype)]
    if way == "concatenated":
        parameters = [each.clone() for each in parameters]
    assert packed_linear.adjacent(parameters[:3]) == (way != "concatenated")
    check(packed_linears, plain_linears, [draw(*shape, dtype=dtype), *parameters], fixed)


def test_packed_linear_takes_a_view_and_no_biases(every_path: pytest.MonkeyPatch) -> None:
    weights = parts((3, 5), 4, dtype=torch.float64)
    check(
        lambda x, *w: packed_linear.packed_linear(x, w),
        lambda x, *w: tuple(nn.functional.linear(x, each) for each in w),
        [draw(4, 6).t(), *weights],
    )


def test_packed_linear_is_one_product(every_path: pytest.MonkeyPatch) -> None:
    inputs = [draw(6, 7), *parts((3, 5, 2), 7, dtype=torch.float64)]
    with torch.profiler.profile() as profile:
        packed_linear.packed_linear(inputs[0], inputs[1:])
    names = [event.name for event in profile.events()]
    assert names.count("aten::mm") == 1 and "aten::cat" not in names


def test_gradients_of_one_weight_change_alone(every_path: pytest.MonkeyPatch) -> None:
    weights = [nn.Parameter(each.clone()) for each in parts((3, 5), 4, dtype=torch.float64)]
    packed_linear.adjoin(weights)
    for _ in range(2):  # the second adds to the first
        sum(y.sum() for y in packed_linear.packed_linear(draw(6, 4), weights)).backward()
    kept = weights[1].grad.clone()
    weights[0].grad.mul_(3)
    nn.utils.clip_grad_norm_([weights[0]], 1e-3)
    assert torch.equal(weights[1].grad, kept)
    assert all(each.grad.is_contiguous() for each in weights)


@pytest.mark.parametrize("adjoined", [False, True])
def test_packed_linear_cannot_be_differentiated_twice(
    every_path: pytest.MonkeyPatch, adjoined: bool
) -> None:
    every_path.setattr(packed_linear, "_one_product", lambda *_: adjoined)
    x = draw(6, 4).requires_grad_()
    first, _ = packed_linear.packed_linear(x, parts((3, 5), 4, dtype=torch.float64))
    (grad,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_packed_linear_under_autocast_and_compile(every_path: pytest.MonkeyPatch) -> None:
    inputs = [draw(6, 4).float(), *parts((3, 5), 4, dtype=torch.float32)]
    with torch.autocast("cpu"):
        found = packed_linear.packed_linear(inputs[0], inputs[1:])
    assert all(y.dtype == torch.bfloat16 for y in found)
    compiled = torch.compile(packed_linear.packed_linear, fullgraph=True, backend="eager")
    assert [y.shape for y in compiled(inputs[0], inputs[1:])] == [(6, 3), (6, 5)]


class Two(nn.Module):
    """Two linears of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        linears = (self.one, self.other)
        return packed_linear.packed_linear(
            x, [m.weight for m in linears], [m.bias for m in linears]
        )

    def adjoin(self) -> Two:
        packed_linear.adjoin([self.one.weight, self.other.weight])
        packed_linear.adjoin([self.one.bias, self.other.bias])
        return self


def two() -> Two:
    torch.manual_seed(0)
    return Two()


def test_adjoin_keeps_parameters(tmp_path: Any) -> None:
    model = two()
    model.one.weight.requires_grad_(False)
    before, saved = list(model.parameters()), copy.deepcopy(model.state_dict())
    model.adjoin()
    assert packed_linear.adjacent([model.one.weight, model.other.weight])
    assert all(x is y for x, y in zip(model.parameters(), before, strict=True))
    assert not model.one.weight.requires_grad and model.other.weight.requires_grad
    assert all(torch.equal(model.state_dict()[name], saved[name]) for name in saved)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(stored[name], saved[name]) for name in saved)
    clone = copy.deepcopy(model)
    with torch.no_grad():
        clone.one.weight.zero_()
    assert torch.equal(model.one.weight, saved["one.weight"])
    assert torch.equal(clone.other.weight, saved["other.weight"])


@pytest.mark.parametrize("assign", [False, True])
def test_adjoined_parameters_load(every_path: pytest.MonkeyPatch, assign: bool) -> None:
    model, stored = two().adjoin(), {k: v + 1 for k, v in two().state_dict().items()}
    model.load_state_dict(stored, assign=assign)
    weights = [model.one.weight, model.other.weight]
    assert packed_linear.adjacent(weights) == (not assign)
    x = draw(6, 4).float()
    truth = nn.functional.linear(x, stored["one.weight"], stored["one.bias"])
    torch.testing.assert_close(model(x)[0], truth)


@pytest.mark.parametrize("how", [{"foreach": True}, {"fused": True}, {"foreach": False}])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_adjoined_parameters_are_trained(
    every_path: pytest.MonkeyPatch, optimizer: Any, how: dict[str, bool]
) -> None:
    models = [two(), two().adjoin()]
    for model, forward in ((models[0], None), (models[1], models[1])):
        steps = optimizer(model.parameters(), lr=0.1, **how)
        for step in range(3):
            x = draw(6, 4, seed=step).float()
            ys = forward(x) if forward else (model.one(x), model.other(x))
            steps.zero_grad()
            sum(y.square().sum() for y in ys).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            steps.step()
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(one, other)


def test_adjoin_refuses_what_cannot_lie_together() -> None:
    one = nn.Parameter(torch.zeros(2, 3))
    for other, text in (
        (one, "one stands twice"),
        (nn.Parameter(torch.zeros(2, 4)), r"shapes \[2, 3\] and \[2, 4\]"),
        (nn.Parameter(torch.zeros(2, 3).double()), "torch.float32 on cpu and torch.float64 on cpu"),
        (nn.Parameter(torch.zeros(2, 3, device="meta")), "Parameter on meta"),
    ):
        with pytest.raises(ValueError, match=text):
            packed_linear.adjoin([one, other])
