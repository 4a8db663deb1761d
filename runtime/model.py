"""A compiled model: parameters under their spec paths, and programs that share them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import fx, nn

from multiway.runtime.answers import Answer
from multiway.runtime.inputs import Expected, check_inputs
from multiway.runtime.parameters.containers import name_kinds
from multiway.specs.errors import MultiwayError, nearest, one_of
from multiway.specs.spec import Spec

CHECKPOINTING = {
    "use_reentrant": False,
    "preserve_rng_state": True,  # what draws random numbers is not made again
    "every_n_layers": 1,
    "offload": False,
}
"""What others may ask of gradient checkpointing: nothing but what a memory plan does anyway."""


class Source(Protocol):
    """What a model asks for its programs. A model pickles if this does."""

    def names(self) -> Sequence[str]:
        """Of all programs, the main one first."""

    def program(self, name: str, containers: nn.Module) -> fx.GraphModule:
        """A program around the modules that hold its parameters."""

    def expected(self, name: str) -> Sequence[Expected]:
        """What a program takes, in order."""

    def readers(self, name: str, *, needed: bool = False) -> Mapping[str, str]:
        """The path of every parameter that a program reads, with the op that first reads it.

        needed: only where an output depends on it.
        """

    def keep_least(self) -> None:
        """Lets programs that are made from now on keep as little for backward as a plan can, if
        they have no budget. Raises MultiwayError where no plan is made."""


class Programs(Mapping[str, fx.GraphModule]):
    """The programs of a model by name. Each is made when it is first asked for."""

    def __init__(self, source: Source, model: nn.Module) -> None:
        self.names = tuple(source.names())
        self._source, self._model = source, model
        self._made: dict[str, fx.GraphModule] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}}

    @property
    def main(self) -> str:
        """The name of the first one."""
        return self.names[0]

    def __getitem__(self, name: str) -> fx.GraphModule:
        if name not in self._made:
            if name not in self.names:
                raise KeyError(f"no program {name!r}; there are {', '.join(self.names)}")
            self._made[name] = self._source.program(name, self._model)
        return self._made[name]

    def forget(self) -> None:
        """Lets every program be made again when it is next asked for."""
        self._made.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Programs({', '.join(self.names)})"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def made(model: Model, program: str) -> bool:
    """Makes a program, if it is not made yet. torch.compile runs this as it is, when it traces a
    call of the model: what the compiler does is no part of the graph. Raises MultiwayError."""
    model.check_program(program)
    _ = model.programs[program], model.expected(program)
    return True


class Model(nn.Module):
    """What `multiway.compile` returns.

    `model(...)` runs the main program of its head, `model(..., program=name)` any; both take inputs
    in order or by name, and check them. `model.programs[name]` is the torch.fx GraphModule itself,
    which takes its inputs in order and checks nothing. `state_dict` names are spec paths.
    """

    # transformers' Trainer asks. A loss is the mean over its batch, whatever else a step holds.
    accepts_loss_kwargs = False

    def __init__(
        self,
        *,
        spec: Spec,
        containers: nn.Module,
        source: Source,
        random: bool = True,
        balance_rates: Mapping[str, float] | None = None,
        answer: Answer | None = None,
    ) -> None:
        super().__init__()
        for name, child in containers.named_children():
            self.add_module(name, child)
        self.spec, self.programs = spec, Programs(source, self)
        self._source = source
        self.balance_rates = dict(balance_rates or {})  # of the biases that update_balance moves
        self.answer = answer  # how the head predicts from files; see runtime/tasks/predict.py
        self.random = random  # whether the weights are still the initial ones

    def forward(self, *args: Any, program: str | None = None, **inputs: Any) -> Any:
        """Runs a program, the main one if none is named. Raises MultiwayError for inputs that do
        not fit."""
        name = self.programs.main if program is None else program
        made(self, name)
        module = self.programs[name]
        return module(*check_inputs(name, self.expected(name), args, inputs))

    def check_program(self, name: str) -> None:
        """Raises MultiwayError for a program that there is not."""
        if name not in self.programs.names:
            raise MultiwayError.one(
                "unknown-program",
                f"head {self.spec.head_name!r} has no program {name!r}",
                place=self.spec.name,
                expected=one_of(self.programs),
                nearest=nearest(name, self.programs),
            )

    def run(self, program: str, /, *args: Any, **inputs: Any) -> Any:
        """The same as `model(*args, program=program, **inputs)`."""
        return self(*args, program=program, **inputs)

    def loss(self, *args: Any, **inputs: Any) -> tuple[Any, ...]:
        """The head's own loss, the mapping of its metrics, and what is tapped, if anything is."""
        found: tuple[Any, ...] = self(*args, program="loss", **inputs)
        return found

    def expected(self, program: str) -> Sequence[Expected]:
        """What a program takes: names, shapes, limits."""
        return self._source.expected(program)

    def unused(self, program: str) -> list[str]:
        """The names of the parameters on which no output of a program depends. A step of it gives
        them no gradient, and DistributedDataParallel then leaves all gradients as they are in each
        process: freeze them first, or let it look for them (`find_unused_parameters=True`)."""
        read = self._source.readers(program, needed=True)
        # Names of state_dict are spec paths, whatever tools put around blocks.
        return [name for name in self.state_dict(keep_vars=True) if name not in read]

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Lets backward make again what it can of every block: programs are made again, as with
        `memory_budget=0`. A model that was compiled with a budget keeps its own.

        options: only what holds anyway, see CHECKPOINTING; transformers gives them. Raises
        MultiwayError for others, and for a model without a memory plan.
        """
        asked = {n: v for n, v in options.items() if not n.endswith("_checkpointing_kwargs")}
        for name in options.keys() - asked.keys():
            asked |= options[name] or {}
        for name, value in asked.items():
            if name not in CHECKPOINTING or CHECKPOINTING[name] != value:
                raise MultiwayError.one(
                    "unknown-option",
                    f"a memory plan has no {name}={value!r}",
                    place="gradient_checkpointing_enable",
                    expected="compile(..., memory_budget=BYTES, sizes=...) for a plan of your own",
                )
        self._source.keep_least()
        self.programs.forget()

    activation_checkpointing_enable = gradient_checkpointing_enable  # as transformers 5 calls it

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

    def __repr__(self) -> str:
        """Every part with its sizes, and with the ops that read it in the main program."""
        name_kinds(self, self._source.readers(self.programs.main))
        return super().__repr__()

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
