"""act(gate) * x in one pass of C each way, float32 on the CPU.

Measured (torch 2.13, 2 cores, milliseconds, torch's operators first): silu of 2048 x 704 forward
0.71 and 0.35, backward 1.32 and 0.53. Of three tensors that are kept two are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multiway.runtime.kernels import native
from multiway.runtime.kernels.kernel import Kernel, Widths
from multiway.runtime.kernels.native.calls import alike
from multiway.runtime.kernels.rows import gated_compiled

FEWEST = 1 << 15  # numbers in x: below, a function of our own costs more than it saves
_SMALL = f"x has fewer than {FEWEST} numbers"


def gated_activation(x: Tensor, gate: Tensor, *, kind: str) -> Tensor:
    """act(gate) * x: x, gate [*, F] -> [*, F], kind in gated_compiled.KINDS.

    A second backward pass through it raises RuntimeError.
    """
    if torch.is_grad_enabled() and (x.requires_grad or gate.requires_grad):
        y: Tensor = _Gated.apply(kind, x, gate)  # type: ignore[no-untyped-call]
        return y
    return gated_compiled.forward(kind, x.contiguous(), gate.contiguous(), None)


class _Gated(torch.autograd.Function):
    """kind, x, gate -> [*, F]."""

    @staticmethod
    def forward(ctx: Any, kind: str, x: Tensor, gate: Tensor) -> Tensor:
        x, gate = x.contiguous(), gate.contiguous()
        ctx.kind = kind
        ctx.save_for_backward(x, gate)
        return gated_compiled.forward(kind, x, gate, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gate = ctx.saved_tensors
        found = gated_compiled.backward(ctx.kind, x, gate, None, grad.contiguous(), again=False)
        wanted = zip((found.x, found.gate), ctx.needs_input_grad[1:], strict=True)
        return None, *(each if needed else None for each, needed in wanted)


def _fits(attrs: Mapping[str, Any], widths: Widths) -> str | None:
    return None if attrs["kind"] in gated_compiled.KINDS else f"activation {attrs['kind']}"


def _takes(x: Tensor, gate: Tensor, *, kind: str) -> str | None:
    if x.numel() < FEWEST:
        return _SMALL
    if not x.is_cpu:
        return f"x is on {x.device.type}"
    if x.dtype is not torch.float32 or not alike(x, gate):
        return f"types are not all float32: {x.dtype}"
    return native.refused("gated")


KERNELS = [
    Kernel(
        op="gated_activation",
        run=gated_activation,
        fits=_fits,
        takes=_takes,
        doc="silu or gelu of a gate times the other half, in one pass of C",
    )
]
