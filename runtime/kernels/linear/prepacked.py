"""Weights of inference programs, laid out once as the products of oneDNN and MKL read them.

torch's linear lays a weight out for the processor's matrix units in every call. oneDNN keeps it for
bfloat16 and any number of rows, MKL for float32 and one number of rows. Measured on the CPU (torch
2.13, AVX-512 and AMX, 2 cores; benchmarks/kernels_copies.py, three runs): its time over that of
torch's linear is

                                bfloat16        float32
    1 x 768 -> 3072           0.65 to 0.71
    8 x 768 -> 768            0.82 to 0.85
    160 x 768 -> 3072         0.66 to 0.69       0.79
    788 x 768 -> 768          0.86 to 0.87    0.90 to 0.93
    788 x 768 -> 3 x 768      0.42 to 0.46       0.92      (three linears, in bfloat16 as one)
    788 x 3072 -> 768         0.94 to 0.96    0.91 to 0.92

Which weights is the pass pack_weights' business; `runtime/parameters/packed.py` tells them here.
Everything that was told is forgotten with its weight, and laid out again where the weight was
written to. Of what was made in inference mode no copy is kept: torch does not count what is written
there.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multiway.runtime.kernels.kernel import autocasts, traced
from multiway.runtime.kernels.versions import Version, counted, unchanged, version_of

# In float32 fewer rows do not gain, nor do weights of fewer numbers: 2048 x 256 -> 1024 takes 0.97
# of torch's time, and 1.02 with the residual added.
FEWEST_ROWS, SMALLEST = 32, 1 << 19
FEWEST = 1 << 19  # multiplications: below, and cold, what is asked here takes longer than it saves
PATIENCE = 4  # so many calls in a row with another number of rows, and MKL's copy is made for that


def tell(weights: Sequence[Tensor]) -> None:
    """Lets the linears of these weights, which read one input, use a copy of them from now on."""
    first = weights[0]
    told = _find(first)
    if told is None:
        gone = functools.partial(_forget, id(first))
        _told[id(first)] = told = weakref.ref(first, gone), {}
    told[1].setdefault(len(weights), _Entry())


def known(weights: Sequence[Tensor]) -> bool:
    """Whether these weights were told. Never while compiling, which cannot look."""
    if torch.compiler.is_compiling():
        return False
    told = _find(weights[0])
    return told is not None and len(weights) in told[1]


def serves(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether there may be a copy for this call: the weights were told, and it is worth asking."""
    if torch.compiler.is_compiling() or not _told:  # most processes keep none
        return False
    return x.numel() * weights[0].shape[0] >= FEWEST and known(weights)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch's linear, or that of the copy: x [*, D], weight [F, D], bias [F] -> [*, F]."""
    found = linears(x, (weight,), () if bias is None else (bias,))
    return F.linear(x, weight, bias) if found is None else found[0]


def linears(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Sequence[Tensor] | None:
    """linear(x, weight_i, bias_i) of each, or None where there is no copy for this call."""
    copy = _copy(x, weights, biases)
    return None if copy is None else copy.linears(x.contiguous(), weights, biases)


def added(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """residual [*, F] + linear(x, weight, bias), or None where there is no copy for this call."""
    if residual.dtype != x.dtype or (torch.is_grad_enabled() and residual.requires_grad):
        return None
    copy = _copy(x, (weight,), () if bias is None else (bias,))
    return None if copy is None else copy.added(residual.contiguous(), x.contiguous(), weight, bias)


def _copy(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> _OneDNN | _MKL | None:
    """A copy for this call. Small products take as long as what is asked here: cheapest first."""
    if torch.compiler.is_compiling() or not _told or x.numel() * weights[0].shape[0] < FEWEST:
        return None
    told = _find(weights[0])
    entry = None if told is None else told[1].get(len(weights))
    if entry is None or type(x) not in (Tensor, nn.Parameter) or not x.is_cpu:
        return None
    if traced() or autocasts(x) or not _available(x.dtype):
        return None
    given = (*weights, *biases)
    if torch.is_grad_enabled() and any(each.requires_grad for each in (x, *given)):
        return None
    return entry.copy(x.dtype, weights, biases, x.numel() // x.shape[-1])


def _find(weight: Tensor) -> _Told | None:
    """What was told of a weight. Another one may have the number of one that is gone."""
    told = _told.get(id(weight))
    return told if told is not None and told[0]() is weight else None


def _forget(number: int, gone: weakref.ref[Tensor]) -> None:
    told = _told.get(number)
    if told is not None and told[0] is gone:
        del _told[number]


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
        self.versions: list[Version] = []
        self.others = 0  # calls in a row with a number of rows that the copy is not for

    def copy(
        self, dtype: torch.dtype, weights: Sequence[Tensor], biases: Sequence[Tensor], rows: int
    ) -> _OneDNN | _MKL | None:
        """The copy for x of this type and so many rows, or None."""
        mkl = dtype == torch.float32
        if mkl and rows < FEWEST_ROWS:
            return None
        given = (*weights, *biases)
        if self.made is not None and unchanged(self.versions, given):
            if not mkl or self.made.rows == rows:
                self.others = 0
                return self.made if given[0].dtype == dtype else None
            self.others += 1
            if self.others < PATIENCE:
                return None
        if any(each.dtype != dtype or not counted(each) for each in given):
            self.made = None
            return None
        if mkl and any(each.numel() < SMALLEST for each in weights):
            return None
        with torch.inference_mode(False), torch.no_grad():
            self.made = _made(weights, biases, rows)
        self.versions, self.others = [version_of(each) for each in given], 0
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
        apply = torch.ops.mkldnn._linear_pointwise.default
        y: Tensor = apply(x, self.weight, self.bias, "none", [], "")
        return (y,) if len(self.widths) == 1 else torch.split(y, self.widths, -1)

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
        apply = torch.ops.mkl._mkl_linear.default
        given: Sequence[Tensor | None] = biases or [None] * len(weights)
        return [
            apply(x, copy, weight, bias, self.rows)
            for copy, weight, bias in zip(self.weights, weights, given, strict=True)
        ]

    def added(self, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (y,) = self.linears(x, [weight], () if bias is None else [bias])
        return y.add_(residual)


_Told = tuple[weakref.ref[Tensor], dict[int, _Entry]]
_told: dict[int, _Told] = {}
"""The id of the first weight of a product to that weight and, by their number, copies."""
