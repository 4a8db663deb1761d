"""A depth mix with the linears of its streams, which keeps no stream for backward.

The linears are torch's own. What they keep is replaced by a note of how it is made: the first of
them whose backward asks makes all streams again from the history, in one reading of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from multiway.runtime.kernels.kernel import Kernel
from multiway.runtime.kernels.mix import fused_mix
from multiway.runtime.kernels.mix import kernels_refusal as mix_refusal


def mix_linear(
    history: Sequence[Tensor],
    weights: Tensor,
    gains: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
    matrices: Sequence[Tensor] = (),
    shifts: Sequence[Tensor] = (),
    *,
    norm: str,
    eps: float,
    normed: Sequence[int],
    raw: Sequence[int],
) -> tuple[Tensor, ...]:
    """linear(norm(stream c) * gain + bias) for c in `normed`, then stream c for c in `raw`.

    history: L of [B, T, D]; weights: [B, T, C, L] or [C, L]; gains, biases: [D] each or none;
    matrices: [F_i, D] for each of `normed`; shifts: [F_i] each or none.
    """
    settings: dict[str, Any] = {"norm": norm, "eps": eps}
    found = fused_mix(history, weights, gains, biases, **settings, normed=normed, raw=raw)
    streams, raws = found[: len(normed)], found[len(normed) :]
    again = _Streams(list(history), weights, list(gains), list(biases), settings, list(normed))
    results = []
    for i, (stream, matrix) in enumerate(zip(streams, matrices, strict=True)):
        with saved_tensors_hooks(again.pack(i, stream), again.unpack):
            results.append(F.linear(stream, matrix, shifts[i] if shifts else None))
    return (*results, *raws)


class _Note:
    """In place of a kept tensor: which stream it was, and its shape."""

    def __init__(self, stream: int, shape: torch.Size) -> None:
        self.stream, self.shape = stream, shape


class _Streams:
    """The normalised streams of one mix, made again when backward asks for them."""

    def __init__(
        self,
        history: list[Tensor],
        weights: Tensor,
        gains: list[Tensor],
        biases: list[Tensor],
        settings: dict[str, Any],
        normed: list[int],
    ) -> None:
        tensors = [*history, weights, *gains, *biases]
        self.tensors = [each.detach() for each in tensors]
        # Versions are those of the tensors themselves: detached ones share them.
        self.versions = [_version(each) for each in self.tensors]
        self.counts = len(history), len(gains), len(biases)
        self.settings, self.normed = settings, normed
        self.made: dict[int, Tensor] = {}

    def pack(self, index: int, stream: Tensor) -> Any:
        """A hook that keeps a note in place of the stream, and everything else as it is."""
        place, count = stream.data_ptr(), stream.numel()  # not the stream, which is to be freed

        def hook(kept: Tensor) -> Any:
            same = kept.data_ptr() == place and kept.numel() == count
            return _Note(index, kept.shape) if same and kept.is_contiguous() else kept

        return hook

    def unpack(self, kept: Any) -> Tensor:
        if not isinstance(kept, _Note):
            tensor: Tensor = kept
            return tensor
        if kept.stream not in self.made:
            self._make()
        return self.made.pop(kept.stream).view(kept.shape)

    @torch.no_grad()
    def _make(self) -> None:
        if [_version(each) for each in self.tensors] != self.versions:
            raise RuntimeError("a hidden or a weight was changed in place before backward")
        sources, gains, biases = self.counts
        history, weights = self.tensors[:sources], self.tensors[sources]
        rest = self.tensors[sources + 1 :]
        made = fused_mix(
            history, weights, rest[:gains], rest[gains : gains + biases], **self.settings,
            normed=self.normed, raw=[],
        )  # fmt: skip
        self.made = dict(enumerate(made))


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _refuses(
    history: Sequence[Tensor],
    weights: Tensor,
    gains: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
    matrices: Sequence[Tensor] = (),
    shifts: Sequence[Tensor] = (),
    **settings: Any,
) -> str | None:
    if torch.compiler.is_compiling():
        return "a compiler plans its own memory"
    return mix_refusal(history, weights, gains, biases, **settings)


KERNELS = [
    Kernel(
        op="mix_linear",
        run=mix_linear,
        refuses=_refuses,
        doc="streams are not kept for backward, but made again from the history",
    )
]
