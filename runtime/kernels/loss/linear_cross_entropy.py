"""The vocabulary product and its cross-entropy in chunks: logits larger than one are never whole.

Each chunk's logits become their own gradient in place, and the gradients of x, weight and bias are
finished in the forward pass, so that the backward pass only multiplies by the incoming number:
three products for each chunk, none of them twice. In exchange [V, D] is held from the forward pass
to the backward pass. As in Liger Kernel (arXiv:2410.10989, section 3.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiway.runtime.kernels.kernel import Kernel, autocasts
from multiway.runtime.labels import IGNORED

CHUNK_BYTES = {"cpu": 64 << 20}
"""Bytes of one chunk's logits in float32 (float64 where x is), of which two are held at a time;
all chunks have the same number of rows but for the last. Every chunk reads and writes the gradient
of the weight once: with less than about 200 rows that, not the products, sets the time. Measured on
2048 x 256 -> 30522 (2 cores, median of 5 rounds), forward and backward against the decomposition:
8 MiB 1.31, 16 MiB 1.11, 32 MiB 1.15, 64 MiB 1.08, 128 MiB 0.99: what it gains is memory."""
CHUNK_BYTES_ELSEWHERE = 512 << 20
SMALL_LOGITS_BYTES = 8 << 20  # as many as that may as well exist
_SMALL = f"the logits have {SMALL_LOGITS_BYTES >> 20} MiB or less"


def linear_cross_entropy(
    x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None, *, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of linear(x, weight, bias) against labels: loss [] and count [] of those read.

    x: [*, D]; labels: [*] int64, -100 where nothing counts; weight: [V, D]; bias: [V].
    The loss is the mean over the labels that count, in at least float32. smoothing: the KL
    divergence to a target that gives `smoothing` evenly to the other classes.
    Differentiating twice raises NotImplementedError.
    """
    device = x.device.type
    if autocasts(x):
        low = torch.get_autocast_dtype(device)
        x, weight = x.to(low), weight.to(low)
        bias = None if bias is None else bias.to(low)
    tracked = torch.is_grad_enabled()
    loss, count, *_ = _linear_cross_entropy(
        x,
        labels,
        weight,
        bias,
        smoothing,
        tracked and x.requires_grad,
        tracked and weight.requires_grad,
        tracked and bias is not None and bias.requires_grad,
    )
    return loss, count


@torch.library.custom_op("multiway::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    x: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    smoothing: float,
    of_x: bool,
    of_weight: bool,
    of_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, count and the gradients of the sum of losses, those not asked for with no elements."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        rows, flat = x.reshape(-1, x.shape[-1]), labels.reshape(-1)
        counted = flat != IGNORED
        count = counted.sum()
        kept = _kept(counted)
        if kept is not None:
            rows, flat, counted = rows[kept], flat[kept], counted[kept]
        sums = _Sums.zeros(rows, weight, bias, (of_x, of_weight, of_bias))
        total = torch.zeros((), dtype=sums.wide, device=x.device)
        for part in _parts(len(rows), weight.shape[0], sums.wide, x.device.type):
            total += sums.add_part(part, rows, flat, counted, weight, bias, smoothing)
        of_rows = sums.x
        if kept is not None and of_x:
            of_rows = x.new_zeros(x.numel() // x.shape[-1], x.shape[-1])
            of_rows.index_copy_(0, kept, sums.x)
        of_rows = of_rows.view(x.shape) if of_x else of_rows
        return total / count.clamp(min=1), count, of_rows, sums.weight, sums.bias


def _kept(counted: Tensor) -> Tensor | None:
    """Numbers of the tokens that count, where leaving the others out costs no wait for a device."""
    if not counted.is_cpu or bool(counted.all()):
        return None
    return counted.nonzero()[:, 0]


def _parts(num_tokens: int, num_classes: int, wide: torch.dtype, device: str) -> list[slice]:
    """Chunks of the tokens, by the rule at CHUNK_BYTES."""
    budget = CHUNK_BYTES.get(device, CHUNK_BYTES_ELSEWHERE)
    most = max(1, budget // (num_classes * wide.itemsize))
    size = math.ceil(num_tokens / max(1, math.ceil(num_tokens / most)))
    return [slice(i, min(i + size, num_tokens)) for i in range(0, num_tokens, max(1, size))]


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """The gradients as they grow, and the memory that every chunk uses again.

    x: [N, D] in its own type; weight: [V, D] and bias: [V] in `wide`, at least float32.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    wide: torch.dtype
    needs: tuple[bool, bool, bool]

    @classmethod
    def zeros(
        cls, rows: Tensor, weight: Tensor, bias: Tensor | None, needs: tuple[bool, bool, bool]
    ) -> _Sums:
        wide = torch.promote_types(rows.dtype, torch.float32)
        of_x, of_weight, of_bias = needs
        return cls(
            x=torch.empty_like(rows) if of_x else rows.new_empty(0),
            weight=weight.new_zeros(weight.shape if of_weight else 0, dtype=wide),
            bias=weight.new_zeros(weight.shape[0] if of_bias else 0, dtype=wide),
            wide=wide,
            needs=needs,
        )

    def add_part(
        self,
        part: slice,
        rows: Tensor,
        labels: Tensor,
        counted: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        smoothing: float,
    ) -> Tensor:
        """The sum of the losses of some rows; adds what they give to the gradients."""
        x, used = rows[part], counted[part]
        labels = labels[part].where(used, 0)[:, None]
        logits = torch.nn.functional.linear(x, weight, bias)
        losses, slope = _losses(logits, labels, self.wide, smoothing, any(self.needs))
        if slope is not None:
            slope *= used[:, None]
            narrow = slope.to(x.dtype)
            of_x, of_weight, of_bias = self.needs
            if of_x:
                torch.mm(narrow, weight, out=self.x[part])
            if of_weight and x.dtype == self.wide:
                self.weight.addmm_(narrow.t(), x)
            elif of_weight:
                self.weight.add_(narrow.t() @ x)
            if of_bias:
                self.bias.add_(slope.sum(0))
        return losses.where(used, 0).sum()


def _losses(
    logits: Tensor, labels: Tensor, wide: torch.dtype, smoothing: float, sloped: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss of each row, [N], and its gradient in the logits, [N, V]."""
    log_p = logits.to(wide).log_softmax(-1)
    true = log_p.gather(-1, labels)[:, 0]
    losses, rest = -true, 0.0
    if smoothing:
        rest = smoothing / (logits.shape[-1] - 1)
        entropy = (1 - smoothing) * math.log(1 - smoothing) + smoothing * math.log(rest)
        losses = entropy - (1 - smoothing) * true - rest * (log_p.sum(-1) - true)
    if not sloped:
        return losses, None
    slope = log_p.exp_()  # the target sums to one, so the gradient is p - target
    if smoothing:
        slope -= rest
    on_label = torch.full((), rest + smoothing - 1, dtype=wide, device=slope.device)
    return losses, slope.scatter_add_(-1, labels, on_label.expand(labels.shape))


@_linear_cross_entropy.register_fake
def _(
    x: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    smoothing: float,
    of_x: bool,
    of_weight: bool,
    of_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return (
        x.new_empty((), dtype=wide),
        labels.new_empty((), dtype=torch.int64),
        x.new_empty(x.shape if of_x else 0),
        weight.new_empty(weight.shape if of_weight else 0, dtype=wide),
        weight.new_empty(weight.shape[0] if of_bias else 0, dtype=wide),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, weight, bias, *_ = inputs
    _, count, of_x, of_weight, of_bias = output
    ctx.mark_non_differentiable(count, of_x, of_weight, of_bias)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(count, of_x, of_weight, of_bias)
    ctx.types = (of_x.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype)


def _backward(ctx: Any, of_loss: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    if torch.is_grad_enabled():  # create_graph: the saved gradients know nothing of x and weight
        raise NotImplementedError("linear_cross_entropy cannot be differentiated twice")
    count, *sums = ctx.saved_tensors
    if of_loss is None:
        return (None,) * 8
    share = of_loss / count.clamp(min=1)
    of_x, of_weight, of_bias = (
        (each * share).to(kind) if needed else None
        for each, kind, needed in zip(
            sums, ctx.types, [ctx.needs_input_grad[i] for i in (0, 2, 3)], strict=True
        )
    )
    return of_x, None, of_weight, of_bias, None, None, None, None


_linear_cross_entropy.register_autograd(_backward, setup_context=_setup)


def _takes(
    x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None, *, smoothing: float
) -> str | None:
    size = labels.numel() * weight.shape[0] * max(4, x.dtype.itemsize)
    if size <= SMALL_LOGITS_BYTES:
        return _SMALL
    return _traces(x, labels, weight, bias, smoothing=smoothing)


def _traces(
    x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None, *, smoothing: float
) -> str | None:
    if autocasts(x):
        return None
    if x.dtype != weight.dtype or (bias is not None and bias.dtype != x.dtype):
        return f"x is {x.dtype}, weight {weight.dtype}"
    return None


KERNELS = [
    Kernel(
        op="linear_cross_entropy",
        run=linear_cross_entropy,
        takes=_takes,
        traces=_traces,
        doc="vocabulary product and loss in chunks of tokens, gradients in the forward pass",
    )
]
