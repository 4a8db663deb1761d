"""balanced_add: in torch's operators it is four passes forward and six backward."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multiway.runtime.kernels import native
from multiway.runtime.kernels.kernel import Kernel, autocasts
from multiway.runtime.kernels.native.calls import SUFFIX, addressable, threads

FEWEST = 1 << 15  # numbers in a: below, a function of our own costs more than it saves
TOTAL = 2.0  # of the two weights


def balanced_add(a: Tensor, b: Tensor, balance: Tensor) -> Tensor:
    """w0 a + w1 b with w = 2 softmax(balance): a and b [*], balance [2].

    A second backward pass through the C kernel raises RuntimeError.
    """
    shares = balance.to(torch.promote_types(balance.dtype, torch.float32)).softmax(-1)
    ours = addressable(a, b, balance) and native.library("balance") is not None
    if torch.compiler.is_compiling() or not ours:
        weights = (TOTAL * shares).to(a.dtype)
        return torch.addcmul(weights[1] * b, weights[0], a)
    if torch.is_grad_enabled() and any(each.requires_grad for each in (a, b, balance)):
        result: Tensor = _Balanced.apply(a, b, shares)  # type: ignore[no-untyped-call]
        return result
    return _forward(a, b, shares)


class _Balanced(torch.autograd.Function):
    """The C kernel, as a function of the shares, which torch differentiates itself."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, shares: Tensor) -> Tensor:
        ctx.save_for_backward(a, b, shares)
        return _forward(a, b, shares)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b, shares = ctx.saved_tensors
        grad, a, b = (each.contiguous() for each in (grad, a, b))
        da, db = torch.empty_like(a), torch.empty_like(b)
        count = threads(a.numel(), a.numel())
        products = torch.zeros(count, 2, dtype=torch.float64)
        inputs = [each.data_ptr() for each in (grad, a, b)]
        outputs = [each.data_ptr() for each in (da, db, products)]
        _call("backward", a, count, inputs, shares, outputs)
        return da, db, (TOTAL * products.sum(0)).to(shares.dtype)


def _forward(a: Tensor, b: Tensor, shares: Tensor) -> Tensor:
    a, b = a.contiguous(), b.contiguous()
    y = torch.empty_like(a)
    count = threads(a.numel(), a.numel())
    _call("forward", a, count, [a.data_ptr(), b.data_ptr()], shares, [y.data_ptr()])
    return y


def _call(
    name: str, a: Tensor, count: int, inputs: list[int], shares: Tensor, outputs: list[int]
) -> None:
    loaded = native.library("balance")
    assert loaded is not None
    function = getattr(loaded, f"balance_{name}_{SUFFIX[a.dtype]}")
    pointers = [[ctypes.c_void_p(each) for each in group] for group in (inputs, outputs)]
    weights = [ctypes.c_double(TOTAL * share) for share in shares.tolist()]
    sizes = (ctypes.c_int64(a.numel()), ctypes.c_int64(count))
    function(*sizes, *pointers[0], *weights, *pointers[1])


def _refuses(a: Tensor, b: Tensor, balance: Tensor) -> str | None:
    if not a.is_cpu:
        return f"a is on {a.device.type}"
    if autocasts(a) or a.dtype not in SUFFIX:
        return f"a is {a.dtype}"
    if a.numel() < FEWEST:
        return f"a is small: {a.numel()} numbers"
    return native.refused("balance")


KERNELS = [
    Kernel(
        op="balanced_add",
        run=balanced_add,
        refuses=_refuses,
        doc="both tensors in one pass of C each way",
    )
]
