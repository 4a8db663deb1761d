"""A linear whose weight is laid out once, where an inference program says so."""

from __future__ import annotations

from torch import Tensor

from multiway.runtime.kernels.kernel import Kernel
from multiway.runtime.kernels.linear import prepacked


def _takes(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    return None if prepacked.serves(x, (weight,)) else "no copy of its weight is kept"


KERNELS = [
    Kernel(
        op="linear",
        run=prepacked.linear,
        takes=_takes,
        doc="torch's linear, in inference by a copy of the weight that is laid out for it",
        packed=True,
    )
]
