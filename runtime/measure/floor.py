"""The least that a step takes: its matrix products and attention calls, and nothing else.

A dispatch mode records what reaches ATen, so that it does not matter who calls: modules, lowered
graphs, autograd, or custom operators, which are opened up. Attention in C is an operator and
counts; what other kernels in C compute by themselves never passes the dispatcher and is not seen.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

_PRODUCTS = re.compile(
    r"_?(mm|bmm|addmm|baddbmm|addbmm|mv|addmv|grouped_mm|mkl_linear|linear|convolution)"
    r"(_|_backward|_activation|_pointwise)?"
)
_ATTENTION = ("_scaled_dot_product_", "_flash_attention_", "_efficient_attention_")
_OURS = ("causal_attention", "causal_attention_backward")  # of runtime/kernels/attention/causal
CACHE_BYTES = 128 * 2**20  # what has not been touched for so long is in no cache
NEAR_BYTES = 32 * 2**20  # what has been touched since is likely to be in one


@dataclass(frozen=True, kw_only=True)
class Operand:
    """A tensor that a call read: its layout, and which of the replay's buffers stands for it."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    buffer: tuple[Any, ...]  # key of the buffer

    @property
    def extent(self) -> int:
        """Elements from the first to the last that the layout reaches."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))


@dataclass(frozen=True, kw_only=True)
class Call:
    """One product or attention call. Operands stand where tensors did."""

    op: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    flops: float

    @property
    def name(self) -> str:
        return self.op._schema.name.split("::")[1]

    @property
    def operands(self) -> tuple[Operand, ...]:
        leaves = tree_leaves((self.args, self.kwargs))
        return tuple(leaf for leaf in leaves if isinstance(leaf, Operand))


class Floor:
    """Replays recorded calls on random tensors of the same shapes, strides and types.

    `calls` are in the order in which they were made; `flops` is the sum of theirs, a multiply and
    an add as two and causal attention as if nothing were masked; `buffer_bytes` is what the replay
    holds.
    """

    def __init__(self, calls: Sequence[Call], kept: Mapping[tuple[Any, ...], torch.Tensor]) -> None:
        self.calls = tuple(calls)
        self.flops = sum(call.flops for call in calls)
        buffers = _buffers([each for call in calls for each in call.operands], kept)
        self.buffer_bytes = sum(each.nbytes for each in buffers.values())
        self._ready = [_bind(call, buffers) for call in calls]

    def __call__(self) -> None:
        """Every call once. Results are let go as soon as there are."""
        with torch.no_grad():
            for op, args, kwargs in self._ready:
                op(*args, **kwargs)

    def counts(self) -> dict[str, int]:
        """How often each operator is called."""
        names = [call.name for call in self.calls]
        return {name: names.count(name) for name in sorted(set(names))}


def gemm_floor(
    run: Callable[[], Any], *, cache_bytes: int = CACHE_BYTES, near_bytes: int = NEAR_BYTES
) -> Floor:
    """Runs a callable, and once more recording its matrix products, convolutions and attention
    calls: what only the first call makes, such as weights with norms folded in, is none of them.

    The result replays them. A tensor stands for itself: it is replayed from a buffer of its own,
    but for so many tensors of one size that `cache_bytes` cannot hold their buffers, which then
    share some. So the caches of the replay are not warmer than those of the run. Only what the run
    itself had made, and touched within the last `near_bytes` of reads and writes, is replayed from
    one buffer for each place in a call, so that they are not colder either.
    """
    run()
    with _Recorder(cache_bytes, near_bytes) as recorder:
        run()
    return Floor(recorder.calls, recorder.kept)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, cache_bytes: int, near_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.kept: dict[tuple[Any, ...], torch.Tensor] = {}  # contents of what is not random
        self._cache_bytes, self._near_bytes = cache_bytes, near_bytes
        self._moved = 0  # bytes read and written so far
        # By storage. The weak reference keeps the number from being given to another storage.
        self._storages: dict[int, StorageWeakRef] = {}
        self._touched: dict[int, int] = {}
        self._made: set[int] = set()
        self._ordinals: dict[tuple[Any, ...], dict[int, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _is_product(func) and (keys := _opened_by(func, args)) is not None:
            with self:  # modes are off inside a handler; what the kernel calls is to be seen
                return func.redispatch(keys, *args, **kwargs)
        # Before the call, which may change how long ago its operands were touched.
        recorded = self._recorded(args, kwargs) if _is_product(func) else None
        result = func(*args, **kwargs)
        if recorded is not None:
            flops = _flops(func, args, kwargs, result)
            call = Call(op=func, args=recorded[0], kwargs=recorded[1], flops=flops)
            self.calls.append(call)
        if not func.is_view:
            self._touch((args, kwargs), made=False)
            self._touch(result, made=True)
        return result

    def _recorded(self, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Arguments with operands in the place of tensors."""
        place = itertools.count()

        def operand(value: Any) -> Any:
            return self._operand(value, next(place)) if _is_dense(value) else value

        return tree_map(operand, (tuple(args), dict(kwargs)))

    def _operand(self, tensor: torch.Tensor, place: int) -> Operand:
        number = self._number(tensor)
        layout = Operand(
            shape=tuple(tensor.shape), stride=tensor.stride(), dtype=tensor.dtype, buffer=()
        )
        kind = (layout.extent, tensor.dtype, tensor.device)
        warm = number in self._made and self._moved - self._touched[number] < self._near_bytes
        if not tensor.is_floating_point():
            key: tuple[Any, ...] = (*kind, "kept", number)
            if key not in self.kept:
                self.kept[key] = tensor.detach().clone()
        elif warm:
            key = (*kind, "warm", place)
        else:
            most = max(1, -(-self._cache_bytes // max(1, layout.extent * tensor.itemsize)))
            known = self._ordinals.setdefault(kind, {})
            key = (*kind, "cold", known.setdefault(number, len(known)) % most)
        return Operand(shape=layout.shape, stride=layout.stride, dtype=layout.dtype, buffer=key)

    def _number(self, tensor: torch.Tensor) -> int:
        reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        number: int = reference.cdata
        self._storages.setdefault(number, reference)
        return number

    def _touch(self, tree: Any, *, made: bool) -> None:
        for tensor in tree_leaves(tree):
            if not _is_dense(tensor):
                continue
            number = self._number(tensor)
            if made and number not in self._touched:
                self._made.add(number)
            self._moved += tensor.numel() * tensor.itemsize
            self._touched[number] = self._moved


def _is_product(func: Any) -> bool:
    name = func._schema.name.split("::")[1]
    if func.namespace == "multiway":
        return name in _OURS
    if func.namespace not in ("aten", "mkl", "mkldnn"):
        return False
    # F.scaled_dot_product_attention itself is composite: what it chooses is recorded.
    return _PRODUCTS.fullmatch(name) is not None or name.startswith(_ATTENTION)


def _is_dense(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and value.dim() > 0


def _opened_by(func: Any, args: Any) -> Any:
    """Where the kernel of an operator is that is made of others, None for one that is not.

    Those are custom operators, and composite ones of ATen that autograd has not taken apart: in a
    kernel, or where no gradient is wanted.
    """
    name = func.name()
    if func.namespace == "aten":
        composite = torch._C._dispatch_has_kernel_for_dispatch_key
        if not composite(name, "CompositeImplicitAutograd"):
            return None
    elif func.namespace.startswith("prim"):
        return None
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(tensors[0].device.type if tensors else "cpu")
    if key is None or not torch._C._dispatch_has_computed_kernel_for_dispatch_key(name, key):
        return None
    return torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))


def _flops(func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> float:
    """FLOPs of a call: torch's own formula where it has one."""
    formula = flop_registry.get(func.overloadpacket)
    if formula is not None:
        return float(formula(*args, **kwargs, out_val=result))
    name = func._schema.name.split("::")[1]
    tensors = [each for each in args if isinstance(each, torch.Tensor)]
    if name.startswith((*_ATTENTION, *_OURS)):
        back = "backward" in name
        query, key, value = tensors[1:4] if back else tensors[:3]
        pair = query.shape[-1] + value.shape[-1]
        products = 2.5 if back else 1.0  # the backward makes the scores again
        return 2.0 * products * pair * key.shape[-2] * (query.numel() // query.shape[-1])
    if name in ("linear", "mv"):
        return 2.0 * tensors[0].numel() * (tensors[1].shape[0] if name == "linear" else 1)
    inner = {"addmm_": 1, "_addmm_activation": 1, "baddbmm_": 1, "addbmm": 1, "addmv": 1}
    first = tensors[inner.get(name, 0)]
    last = tensors[inner.get(name, 0) + 1]
    return 2.0 * first.numel() * (last.shape[-1] if last.dim() > 1 else 1)


def _buffers(
    operands: Sequence[Operand], kept: Mapping[tuple[Any, ...], torch.Tensor]
) -> dict[tuple[Any, ...], torch.Tensor]:
    """Random tensors, one for every key of a buffer."""
    generator = torch.Generator().manual_seed(0)
    found: dict[tuple[Any, ...], torch.Tensor] = {}
    for each in operands:
        if each.buffer in found:
            continue
        extent, dtype, device = each.buffer[:3]
        if each.buffer in kept:
            found[each.buffer] = kept[each.buffer]
        else:
            # Small, so that products of products stay far from the ends of every float type.
            value = torch.randn(extent, generator=generator) * 0.1
            found[each.buffer] = value.to(device=device, dtype=dtype)
    return found


def _bind(call: Call, buffers: Mapping[tuple[Any, ...], torch.Tensor]) -> Any:
    def bound(value: Any) -> Any:
        if not isinstance(value, Operand):
            return value
        buffer = buffers[value.buffer]
        same = tuple(buffer.shape) == value.shape and buffer.stride() == value.stride
        return buffer if same else buffer.as_strided(value.shape, value.stride)

    args, kwargs = tree_map(bound, (call.args, dict(call.kwargs)))
    return call.op, args, kwargs
