"""A compiled model: parameters under their spec paths, and programs that share them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from multiway.runtime.answers import Answer
from multiway.runtime.inputs import Expected, check_inputs
from multiway.specs.spec import Spec

Make = Callable[[str, nn.Module], fx.GraphModule]
"""(name of a program, modules that hold its parameters) -> the program."""


class Programs(Mapping[str, fx.GraphModule]):
    """The programs of a model by name. Each is made when it is first asked for."""

    def __init__(self, names: Sequence[str], make: Make, containers: nn.Module) -> None:
        self._names, self._make, self._containers = tuple(names), make, containers
        self._made: dict[str, fx.GraphModule] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Programs:
        """The programs of a copied model, which read the parameters of the copy."""
        return Programs(self._names, self._make, copy.deepcopy(self._containers, memo))

    def __getitem__(self, name: str) -> fx.GraphModule:
        if name not in self._names:
            raise KeyError(f"no program {name!r}; there are {', '.join(self._names)}")
        if name not in self._made:
            self._made[name] = self._make(name, self._containers)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Model(nn.Module):
    """What `multiway.compile` returns.

    `model(...)` runs the main program of its head, `model.run(name, ...)` any; both check their
    inputs and take them by name. `model.programs[name]` is the torch.fx GraphModule itself, which
    takes its inputs in order and checks nothing. `state_dict` names are spec paths.
    """

    def __init__(
        self,
        *,
        spec: Spec,
        containers: nn.Module,
        programs: Programs,
        expected: Callable[[str], Sequence[Expected]],
        random: bool = True,
        balance_rates: Mapping[str, float] | None = None,
        answer: Answer | None = None,
    ) -> None:
        super().__init__()
        for name, child in containers.named_children():
            self.add_module(name, child)
        self.spec, self.programs = spec, programs
        self._expected = expected
        self.balance_rates = dict(balance_rates or {})  # of the biases that update_balance moves
        self.answer = answer  # how the head predicts from files; see runtime/tasks/predict.py
        self.random = random  # whether the weights are still the initial ones

    def run(self, program: str, /, **inputs: Any) -> Any:
        """Runs a program on named inputs. Raises MultiwayError where they do not fit."""
        module = self.programs[program]
        ready = check_inputs(program, self.expected(program), inputs)
        return module(*ready.values())

    def forward(self, **inputs: Any) -> Any:
        return self.run(next(iter(self.programs)), **inputs)

    def loss(self, **inputs: Any) -> Any:
        """The head's own loss and its metrics."""
        return self.run("loss", **inputs)

    def expected(self, program: str) -> Sequence[Expected]:
        """What a program takes: names, shapes, limits."""
        return self._expected(program)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As of any module. The weights are then no longer random, if all but a head's came."""
        keys = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self.random &= any(not name.startswith("heads.") for name in keys.missing_keys)
        return keys

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def extra_repr(self) -> str:
        total = sum(p.numel() for p in self.parameters())
        programs = ", ".join(self.programs)
        return f"{self.spec.name}, head {self.spec.head_name}: {total:,} parameters, {programs}"


def new_cache(
    model: Model, *, batch: int, slots: int, dtype: torch.dtype | None = None
) -> list[torch.Tensor]:
    """An empty cache: offset [B], then key and value [B, K, slots, E] of every layer."""
    expected = next(e for e in model.expected("prefill") if e.many)
    sizes = {"B": batch, "S": slots}
    parameter = next(model.parameters())
    dtype = dtype or parameter.dtype
    offset = torch.zeros(batch, dtype=torch.int64, device=parameter.device)
    shapes = [[sizes[s] if isinstance(s, str) else s for s in shape] for shape in expected.shapes]
    layers = [torch.zeros(shape, dtype=dtype, device=parameter.device) for shape in shapes[1:]]
    return [offset, *layers]
