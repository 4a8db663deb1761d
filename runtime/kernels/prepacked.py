"""Weights of inference programs, laid out once as the products of oneDNN and MKL read them.

torch's linear lays a weight out for the processor's matrix units in every call. oneDNN keeps it for
bfloat16 and any number of rows, MKL for float32 and one number of rows. Measured on the CPU (torch
2.13, AVX-512 and AMX, 2 cores, weights of 12 layers in turn; its time over that of torch's linear):

                              bfloat16   float32
    1 x 768 -> 3072             0.71
    8 x 768 -> 768              0.58
    160 x 768 -> 3072           0.68       0.75
    788 x 768 -> 768            0.87       0.91
    788 x 768 -> 3 x 768        0.41       0.91      (three linears in bfloat16, one in float32)
    788 x 3072 -> 768           0.89       0.93

Which weights is the pass pack_weights' business; `runtime/packing.py` tells them here. Everything
that was told is forgotten with its weight, and laid out again where the weight was written to.
"""

from __future__ import annotations

import functools
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from multiway.runtime.kernels.kernel import autocasts, traced
from multiway.runtime.marks import Mark, mark, unchanged

FEWEST_ROWS = 32  # of a product in float32: below, it does not gain,
SMALLEST = (
    1 << 19
)  # nor do weights of fewer numbers: 2048 x 256 -> 1024 0.97, added to a residual 1.02
PATIENCE = 4  # so many calls in a row with another number of rows, and MKL's copy is made for that


def tell(weights: Sequence[Tensor]) -> None:
    """Lets the linears of these weights, which read one input, use a copy of them from now on."""
    _told.setdefault(weights[0], {}).setdefault(len(weights), _Entry())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch's linear, or that of the copy: x [*, D], weight [F, D], bias [F] -> [*, F]."""
    found = linears(x, [weight], () if bias is None else [bias])
    return F.linear(x, weight, bias) if found is None else found[0]


def linears(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Sequence[Tensor] | None:
    """linear(x, weight_i, bias_i) of each, or None where there is no copy for this call."""
    copy = _copy(x, weights, biases)
    if copy is None:
        return None
    found = copy.linears(x.reshape(-1, x.shape[-1]).contiguous(), weights, biases)
    return [each.view(*x.shape[:-1], each.shape[-1]) for each in found]


def added(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """residual [*, F] + linear(x, weight, bias), or None where there is no copy for this call."""
    biases = () if bias is None else [bias]
    copy = _copy(x, [weight], biases) if residual.dtype == x.dtype else None
    if copy is None or _learns([residual]):
        return None
    rows = residual.reshape(-1, residual.shape[-1]).contiguous()
    return copy.added(rows, x.reshape(-1, x.shape[-1]).contiguous(), weight, bias).view_as(residual)


def known(weights: Sequence[Tensor]) -> bool:
    """Whether these weights were told. Never while compiling, which cannot look."""
    return not torch.compiler.is_compiling() and len(weights) in _told.get(weights[0], ())


def _copy(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> _OneDNN | _MKL | None:
    if torch.compiler.is_compiling():
        return None
    told = _told.get(weights[0])
    entry = None if told is None else told.get(len(weights))
    if entry is None or traced() or not _ordinary(x) or autocasts(x):
        return None
    given = [*weights, *biases]
    if any(each.dtype != x.dtype for each in given) or _learns([x, *given]):
        return None
    return entry.copy(weights, biases, x.numel() // x.shape[-1])


def _ordinary(x: Tensor) -> bool:
    return type(x) in (Tensor, nn.Parameter) and x.is_cpu and x.numel() > 0 and _available(x.dtype)


def _learns(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(each.requires_grad for each in tensors)


@functools.cache
def _available(dtype: torch.dtype) -> bool:
    """Whether this torch computes with copies for this type. Operators are looked for and tried:
    they are undocumented. torch's own compiler uses them for frozen weights.
    """
    x, weight, bias = (torch.ones(shape, dtype=dtype) for shape in ((2, 3), (4, 3), (4,)))
    if dtype not in (torch.bfloat16, torch.float32):
        return False
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        (found,) = _made([weight], [bias], 2).linears(x, [weight], [bias])
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return bool((found == 4).all())


class _Entry:
    """The copy of some weights, made when it is first needed and again when they have changed."""

    def __init__(self) -> None:
        self.made: _OneDNN | _MKL | None = None
        self.marks: list[Mark] = []
        self.others = 0  # calls in a row with a number of rows that the copy is not for

    def copy(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor], rows: int
    ) -> _OneDNN | _MKL | None:
        given = [*weights, *biases]
        mkl = given[0].dtype == torch.float32
        if self.made is not None and unchanged(self.marks, given):
            if not mkl or self.made.rows == rows:
                self.others = 0
                return self.made
            self.others += 1
            if self.others < PATIENCE:
                return None
        if mkl and (rows < FEWEST_ROWS or any(each.numel() < SMALLEST for each in weights)):
            return None
        with torch.inference_mode(False), torch.no_grad():
            self.made = _made(weights, biases, rows)
        self.marks, self.others = [mark(each) for each in given], 0
        return self.made


def _made(weights: Sequence[Tensor], biases: Sequence[Tensor], rows: int) -> _OneDNN | _MKL:
    if weights[0].dtype == torch.float32:
        return _MKL.of(weights, rows)
    return _OneDNN.of(weights, biases)


@dataclass(frozen=True, kw_only=True)
class _OneDNN:
    """One product for all weights, for any number of rows."""

    weight: Tensor
    bias: Tensor | None
    widths: list[int]
    rows: int = 0

    @classmethod
    def of(cls, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> _OneDNN:
        joined = torch.cat([each.detach() for each in weights])
        return cls(
            weight=torch.ops.mkldnn._reorder_linear_weight(joined),
            bias=torch.cat([each.detach() for each in biases]) if biases else None,
            widths=[len(each) for each in weights],
        )

    def linears(self, x: Tensor, *_: Sequence[Tensor]) -> Sequence[Tensor]:
        y = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return torch.split(y, self.widths, -1)

    def added(self, residual: Tensor, x: Tensor, *_: Tensor | None) -> Tensor:
        apply = torch.ops.mkldnn._linear_pointwise.binary
        found: Tensor = apply(x, residual, self.weight, self.bias, "add")
        return found


@dataclass(frozen=True, kw_only=True)
class _MKL:
    """A product for each weight, for one number of rows."""

    weights: list[Tensor]
    rows: int

    @classmethod
    def of(cls, weights: Sequence[Tensor], rows: int) -> _MKL:
        pack = torch.ops.mkl._mkl_reorder_linear_weight
        return cls(weights=[pack(each.detach().contiguous(), rows) for each in weights], rows=rows)

    def linears(
        self, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        apply = torch.ops.mkl._mkl_linear
        given: Sequence[Tensor | None] = biases or [None] * len(weights)
        return [
            apply(x, copy, weight, bias, self.rows)
            for copy, weight, bias in zip(self.weights, weights, given, strict=True)
        ]

    def added(self, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (y,) = self.linears(x, [weight], () if bias is None else [bias])
        return y.add_(residual)


_told: MutableMapping[Tensor, dict[int, _Entry]] = WeakTensorKeyDictionary()
"""The first weight of a product to {number of its weights: its copy}."""
