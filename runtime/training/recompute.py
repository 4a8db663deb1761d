"""Runs a block so that its backward makes some values again instead of keeping them.

torch's checkpoint runs a whole function again; its selective form knows operators of ATen and
cannot keep what a kernel in C or an autograd function made. Here the unit is one call of the
block's graph. A call that is made again keeps nothing. One that is kept runs once: of what its
backward needs it keeps all but the values that are made again, wherever they are its inputs.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from multiway.runtime.kernels.kernel import transforms

Values = dict[fx.Node, Any]
Layout = tuple[tuple[int, ...], tuple[int, ...], int]
"""Sizes, strides, offset."""


def recompute(module: fx.GraphModule, again: Collection[str]) -> None:
    """Lets a block keep no more for backward than what the calls named in `again` start from.

    again: names of fx nodes. No call may draw random numbers. Under torch.compile and torch.export
    the whole block is one checkpoint. Under torch.func and in forward mode everything is kept:
    torch gives no say there in what is saved.
    """
    run = _Recomputed(module, again)

    def forward(*args: Any) -> Any:  # a function, because torch.export reads its code
        return run(*args)

    module.forward = forward


class _Recomputed:
    """The forward of a block whose backward makes some of its calls once more."""

    def __init__(self, module: fx.GraphModule, again: Collection[str]) -> None:
        self.module, self.run = module, module.forward
        self.nodes = tuple(module.graph.nodes)
        found: set[fx.Node] = set()
        for node in self.nodes:
            if node.name in again or (_is_port(node) and node.args[0] in found):
                found.add(node)
        self.again = frozenset(found)
        # What a replay starts from: inputs, parameters, and what is made by calls that are kept.
        self.starts = frozenset(
            each for node in found for each in node.all_input_nodes if each not in found
        )
        last = {each: node for node in self.nodes for each in (node, *node.all_input_nodes)}
        self.done: dict[fx.Node, list[fx.Node]] = {}
        for each, node in last.items():
            self.done.setdefault(node, []).append(each)

    def __call__(self, *args: Any) -> Any:
        if not torch.is_grad_enabled() or transforms():
            return self.run(*args)
        if torch.compiler.is_compiling():
            return checkpoint(self.run, *args, use_reentrant=False, preserve_rng_state=False)
        frame = _Frame(self, args)
        values: Values = {}
        given = iter(args)
        for node in self.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                values[node] = operator.attrgetter(str(node.target))(self.module)
            elif node.op == "output":
                return _filled(node.args[0], values)
            else:
                with frame.packing(node, values):
                    values[node] = _call(node, values)
            if node in self.starts:
                frame.start(node, values[node])
            for each in self.done.get(node, ()):
                del values[each]
        raise AssertionError("a block without output")


class _Place(NamedTuple):
    """Where a tensor lies: the address of its storage, 0 where there is no memory, and how."""

    storage: int
    dtype: torch.dtype
    layout: Layout


@dataclass(frozen=True, slots=True)
class _Slot:
    """What autograd holds in the place of a tensor that is made again."""

    frame: _Frame
    key: int


@dataclass(frozen=True, slots=True)
class _Part:
    """A tensor that a kept call saved of a value that is made again."""

    key: int
    layout: Layout
    whole: Layout  # of the value itself


class _Frame:
    """One forward of a block: what a replay starts from, and what backward will ask for.

    Slots hold their frame and never the other way, so that a frame goes with its last slot.
    """

    def __init__(self, block: _Recomputed, args: tuple[Any, ...]) -> None:
        self.block = block
        self.autocast = _autocast(args)
        self.values: Values = {}
        self.keys = itertools.count()
        self.own: dict[fx.Node, list[int]] = {}  # what a call that is made again saved, in order
        self.parts: dict[fx.Node, list[_Part]] = {}  # what kept calls saved of its value
        self.made: dict[int, Tensor] = {}

    def start(self, node: fx.Node, value: Any) -> None:
        """Holds a value that a replay starts from, but not how it came about."""
        self.values[node] = tree_map(_leaf, value)

    def packing(self, node: fx.Node, values: Values) -> contextlib.AbstractContextManager[Any]:
        """A context in which one call runs and what it saves is kept, or made again."""
        if node in self.block.again:
            own = self.own.setdefault(node, [])

            def give(_: Tensor) -> _Slot:
                own.append(next(self.keys))
                return _Slot(self, own[-1])

            return saved_tensors_hooks(give, _unpack)
        sources = {  # not the values themselves: autograd holds what is called below
            each: _place(values[each])
            for each in node.all_input_nodes
            if each in self.block.again and isinstance(values[each], Tensor)
        }
        if not sources:
            return contextlib.nullcontext()

        def keep(tensor: Tensor) -> _Slot | Tensor:
            place = _place(tensor)
            found = (each for each, whole in sources.items() if _is_part(place, whole))
            source = next(found, None)
            if source is None:
                return tensor.detach()  # of an output, the tensor itself would hold its own maker
            part = _Part(next(self.keys), place.layout, sources[source].layout)
            self.parts.setdefault(source, []).append(part)
            return _Slot(self, part.key)

        return saved_tensors_hooks(keep, _unpack)

    def take(self, key: int) -> Tensor:
        """A tensor that was not kept. The first one that is asked for makes all."""
        if key not in self.made:
            with torch.enable_grad(), self.autocast():
                self._replay()
        return self.made.pop(key)

    def _replay(self) -> None:
        values, wanted = dict(self.values), self._wanted()
        for node in self.block.nodes:
            if node not in wanted:
                continue
            saved: list[Tensor] = []
            with saved_tensors_hooks(_collect(saved), _unpack):
                value = _call(node, values)
            keys = self.own.get(node, [])
            parts = self.parts.get(node, [])
            if len(saved) != len(keys) or any(each.whole != _layout(value) for each in parts):
                raise RuntimeError(
                    f"{node.name} in {type(self.block.module).__name__} does not run again as it "
                    "ran in forward: were kernels switched on or off between?"
                )
            self.made |= zip(keys, saved, strict=True)
            values[node] = tree_map(_leaf, value)
            for each in parts:
                self.made[each.key] = values[node].detach().as_strided(*each.layout)

    def _wanted(self) -> set[fx.Node]:
        """What a replay has to call: what saved something, was saved, or is read by such."""
        found: set[fx.Node] = set()
        for node in reversed(self.block.nodes):
            if node not in self.block.again:
                continue
            if node in found or self.own.get(node) or node in self.parts:
                found |= {node, *(self.block.again & set(node.all_input_nodes))}
        return found


def _unpack(held: _Slot | Tensor) -> Tensor:
    return held if isinstance(held, Tensor) else held.frame.take(held.key)


def _collect(saved: list[Tensor]) -> Callable[[Tensor], None]:
    return lambda tensor: saved.append(tensor.detach())


def _is_port(node: fx.Node) -> bool:
    return node.target is operator.getitem


def _call(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    assert callable(node.target), "a block calls functions only"
    args = [_filled(each, values) for each in node.args]
    return node.target(*args, **{name: _filled(v, values) for name, v in node.kwargs.items()})


def _filled(argument: Any, values: Mapping[fx.Node, Any]) -> Any:
    """An argument with values in the places of nodes, and plain lists as lowered code has them."""
    if isinstance(argument, fx.Node):
        return values[argument]
    if isinstance(argument, tuple):
        return tuple(_filled(each, values) for each in argument)
    if isinstance(argument, list):
        return [_filled(each, values) for each in argument]
    return argument


def _leaf(value: Any) -> Any:
    """A value without its history, which asks for gradients if it did; parameters are that."""
    if not isinstance(value, Tensor) or value.is_leaf:
        return value
    return value.detach().requires_grad_(value.requires_grad)


def _layout(tensor: Tensor) -> Layout:
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


def _place(tensor: Tensor) -> _Place:
    return _Place(tensor.untyped_storage().data_ptr(), tensor.dtype, _layout(tensor))


def _is_part(tensor: _Place, value: _Place) -> bool:
    """Whether all numbers of a tensor are surely numbers of a value that is there.

    Several values may lie in one storage, side by side or in turn: of a part of one that lies in
    turn with others it is not known.
    """
    if not value.storage or tensor[:2] != value[:2]:
        return False
    part, whole = tensor.layout, value.layout
    if part == whole or _axes(part) == _axes(whole):
        return True
    dense = all(stride == 1 for stride, _ in _axes(whole)[1])
    return dense and whole[2] <= part[2] and _end(part) <= _end(whole)


def _axes(layout: Layout) -> tuple[int, list[tuple[int, int]]]:
    """Which numbers of a storage a tensor holds: the first, and (stride, size) with as few axes as
    can be. Two views of the same numbers have the same, in whatever order and shape.
    """
    sizes, strides, offset = layout
    found: list[tuple[int, int]] = []
    for stride, size in sorted(zip(strides, sizes, strict=True)):
        if found and stride == found[-1][0] * found[-1][1]:
            found[-1] = found[-1][0], found[-1][1] * size
        elif stride and size != 1:
            found.append((stride, size))
    return offset, found


def _end(layout: Layout) -> int:
    sizes, strides, offset = layout
    return offset + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True))


def _autocast(args: tuple[Any, ...]) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """A context with autocast as it is now, for a replay that runs from within backward."""
    kinds = {leaf.device.type for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
    now = [
        (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        for kind in sorted(kinds & {"cpu", "cuda", "xpu", "mps"})
    ]
    cached = torch.is_autocast_cache_enabled()

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for kind, dtype, enabled in now:
                if enabled or torch.is_autocast_enabled(kind):
                    stack.enter_context(
                        torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=cached)
                    )
            yield

    return again
