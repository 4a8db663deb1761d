"""Parts of the language that others are made of: norms, initial values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NewType

from multiway.specs.errors import Report
from multiway.specs.language.fields import Config, Formula, Real, key, keys_of
from multiway.specs.language.routing import Routing

ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu", "relu_squared", "tanh", "sigmoid")
Activation = NewType("Activation", str)  # one of these, or the name of an elementwise op


@dataclass(frozen=True, kw_only=True)
class PlainNorm(Config):
    """A normalisation over the last axis; in a routed part, one copy a way."""

    short = "kind"
    switch = True

    kind: Literal["layer_norm", "rms_norm"] | None = key("default: that of block.norm")
    eps: Real | None = key("added inside the square root; default: that of block.norm")
    weight: bool = key("learned gain", default=True)
    bias: bool | None = key("learned shift; default: layer_norm has one, rms_norm has none")


@dataclass(frozen=True, kw_only=True)
class Norm(PlainNorm):
    """A normalisation that may have a copy for every modality."""

    experts: Routing | None = key("copies of the norm")


@dataclass(frozen=True, kw_only=True)
class Initial(Config):
    """How a parameter starts."""

    short = "kind"
    required = ("kind",)

    kind: Literal[
        "normal",
        "truncated_normal",
        "uniform",
        "constant",
        "zeros",
        "ones",
        "newest",
        "identity",
        "scaled",
    ] = key(
        "newest: 1 on the newest source, 0 elsewhere; identity: 1 where row and column agree; "
        "scaled: what would hold otherwise, times value",
        default="zeros",
    )
    std: Formula | None = key("standard deviation; may use fan_in and fan_out")
    cut: Formula | None = key("truncated_normal: values beyond +-cut are drawn again")
    bound: Formula | None = key("uniform: between -bound and bound")
    value: Formula | None = key("constant: the value; scaled: the factor")

    needs: ClassVar[dict[str, tuple[str, ...]]] = {
        "normal": ("std",),
        "truncated_normal": ("std", "cut"),
        "uniform": ("bound",),
        "constant": ("value",),
        "scaled": ("value",),
    }

    def check(self, report: Report) -> None:
        for name in self.needs.get(self.kind, ()):
            if getattr(self, name) is None:
                report.add(
                    "missing-key",
                    f"{self.kind} needs {name!r}",
                    span=self.span("kind"),
                    expected=f"{name}: {keys_of(Initial)[name][1]}",
                )
