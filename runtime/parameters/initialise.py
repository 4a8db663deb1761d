"""Fills parameters with their initial values."""

from __future__ import annotations

import math
from typing import Protocol

import torch


class Start(Protocol):
    """How a parameter starts; see compiler.init.Init."""

    @property
    def kind(self) -> str: ...
    @property
    def std(self) -> float: ...
    @property
    def cut(self) -> float: ...
    @property
    def bound(self) -> float: ...
    @property
    def value(self) -> float: ...


@torch.no_grad()
def initialise(tensor: torch.Tensor, start: Start, generator: torch.Generator) -> None:
    """Writes initial values into a tensor. Meta tensors are left alone."""
    if tensor.is_meta:
        return
    match start.kind:
        case "normal":
            tensor.normal_(0.0, start.std, generator=generator)
        case "truncated_normal":
            _truncated_normal(tensor, start.std, start.cut, generator)
        case "uniform":
            tensor.uniform_(-start.bound, start.bound, generator=generator)
        case "constant":
            tensor.fill_(start.value)
        case "zeros":
            tensor.zero_()
        case "ones":
            tensor.fill_(1.0)
        case "newest":
            tensor.zero_()
            tensor[..., -1] = 1.0
        case "identity":
            tensor.zero_()
            tensor.diagonal(dim1=-2, dim2=-1).fill_(1.0)
        case "one_hot":
            tensor.zero_()
            tensor[int(start.value)] = 1.0
        case "diagonal":
            tensor.zero_()
            tensor[:: math.isqrt(tensor.numel()) + 1] = start.value
        case "tiled":
            tensor.zero_()
            columns = torch.arange(tensor.shape[1], device=tensor.device)
            tensor[columns % tensor.shape[0], columns] = start.value
        case other:
            raise AssertionError(f"no initial values of kind {other}")


def _truncated_normal(
    tensor: torch.Tensor, std: float, cut: float, generator: torch.Generator
) -> None:
    """Normal values within +-cut, by the inverse of the distribution function.

    The same distribution as torch.nn.init.trunc_normal_, which draws again until all values fit and
    takes fifty times as long when the cut is at one standard deviation.
    """
    scale = std * math.sqrt(2)
    edge = math.erf(cut / scale)
    values = torch.empty_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
    values.uniform_(-edge, edge, generator=generator).erfinv_().mul_(scale).clamp_(-cut, cut)
    tensor.copy_(values)
