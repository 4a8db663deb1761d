"""Fills parameters with their initial values."""

from __future__ import annotations

from typing import Protocol

import torch


class Start(Protocol):
    """How a parameter starts; see compiler.graph.Init."""

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
            cut = start.cut
            torch.nn.init.trunc_normal_(tensor, 0.0, start.std, -cut, cut, generator=generator)
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
        case other:
            raise AssertionError(f"no initial values of kind {other}")
