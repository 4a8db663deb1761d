"""How several parameters of ours lie in one tensor of a foreign file, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from multiway.runtime.checkpoints.rename import Pair


def held(pair: Pair, own: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Our tensors that lie in one of a foreign file: views."""
    found = [own[name] for name in pair.ours]
    if pair.scalar and found[0].shape == (1,):
        return [each[0] for each in found]
    return found if pair.entry is None else [each[pair.entry] for each in found]


def held_shapes(pair: Pair, own: Mapping[str, torch.Tensor]) -> list[torch.Size]:
    """Their shapes."""
    shapes = [own[name].shape for name in pair.ours]
    if pair.scalar and shapes[0] == (1,):
        return [torch.Size([])] * len(shapes)
    return shapes if pair.entry is None else [shape[1:] for shape in shapes]


def laid(pair: Pair, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Our tensors, in the order of `pair.ours`, as the one that a foreign file has."""
    whole = _together(pair, parts)
    if pair.transpose:
        whole = whole.mT
    return whole.flatten() if pair.flat else whole


def taken(pair: Pair, theirs: torch.Tensor, shapes: Sequence[torch.Size]) -> list[torch.Tensor]:
    """The inverse of `laid`. `shapes` are those of our tensors, which may be views of theirs."""
    if pair.flat:
        theirs = theirs.reshape(laid_shape(pair, shapes, flat=False))
    if pair.transpose:
        theirs = theirs.mT
    if pair.along == "new":
        return list(theirs.unbind(0))
    if len(shapes) == 1:
        return [theirs]
    if pair.along == "columns":
        return list(torch.split(theirs, [shape[1] for shape in shapes], dim=1))
    rows = [shape[0] // pair.groups for shape in shapes]
    return [p.flatten(0, 1) for p in torch.split(_grouped(theirs, pair.groups), rows, dim=1)]


def laid_shape(pair: Pair, shapes: Sequence[torch.Size], *, flat: bool = True) -> torch.Size:
    """The shape of `laid`; without `flat` that before it is made one row."""
    # By arithmetic: the first operator on a meta tensor loads 80 MB of torch.
    whole = list(shapes[0])
    if pair.along == "new":
        whole = [len(shapes), *whole]
    elif len(shapes) > 1:
        axis = 1 if pair.along == "columns" else 0
        whole[axis] = sum(shape[axis] for shape in shapes)
    if pair.transpose:
        whole[-2:] = reversed(whole[-2:])
    return torch.Size([math.prod(whole)] if pair.flat and flat else whole)


def _together(pair: Pair, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    if pair.along == "new":
        return torch.stack(list(parts))
    if len(parts) == 1:
        return parts[0]
    if pair.along == "columns":
        return torch.cat(list(parts), dim=1)
    return torch.cat([_grouped(part, pair.groups) for part in parts], dim=1).flatten(0, 1)


def _grouped(tensor: torch.Tensor, groups: int) -> torch.Tensor:
    return tensor.reshape(groups, -1, *tensor.shape[1:])
