"""Sites of parallel lanes: from one sublayer's output to the next one's input in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from multiway.runtime.kernels.kernel import Kernel, Widths, autocasts
from multiway.runtime.kernels.lanes import op
from multiway.runtime.kernels.lanes.plan import WEIGHTS, Inputs, Plan
from multiway.runtime.kernels.native.calls import NORMS

__all__ = ["KERNELS", "fused_lanes"]

_ATTRIBUTES = tuple(Plan.__dataclass_fields__)
_TENSORS = tuple(Inputs.__dataclass_fields__)


def fused_lanes(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """The op of compiler/fusions/fused_lanes.py: tensors as in plan.Inputs, attributes as in
    plan.Plan, all by name or in their order.

    Returns, as the plan says: the lanes behind the site that ends [B, T, N, D]; the weights of mix
    [B, T, N, N] and write [B, T, N, 1] of the site that begins; what it reads, normalised for each
    norm and as it is, [B, T, R*D] each. In C, a second backward pass raises RuntimeError.
    """
    inputs, plan = _parted(*args, **kwargs)
    return op.run(inputs, plan)


def _parted(*args: Any, **kwargs: Any) -> tuple[Inputs, Plan]:
    """The tensors and the attributes of a call."""
    plan = Plan(**{name: kwargs.pop(name) for name in _ATTRIBUTES})
    given = {**dict(zip(_TENSORS, args, strict=False)), **kwargs}
    return Inputs(**{name: value for name, value in given.items() if value is not None}), plan


def _fits(attrs: Mapping[str, Any], widths: Widths) -> str | None:
    weights, norm = attrs["weights"], attrs["norm"]
    if weights not in WEIGHTS or norm not in NORMS:
        return f"{weights}, {norm}: no kernel for these"
    return None


def _takes(lanes: Tensor, *others: Any, **named: Any) -> str | None:
    if autocasts(lanes):
        return "autocast: products are to run in its type"
    dtype = lanes.dtype
    for each in (*others, *(named[name] for name in _TENSORS if name in named)):
        for x in each if isinstance(each, (list, tuple)) else (each,):
            if x is not None and x.dtype is not dtype:
                return "tensors of unlike types"
    return None


KERNELS = [
    Kernel(
        op="fused_lanes",
        run=fused_lanes,
        fits=_fits,
        takes=_takes,
        traces=_takes,
        doc="Lanes are read once and written once between two sublayers, in C where there is C.",
        portable=True,
    )
]
