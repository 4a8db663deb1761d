"""What travels through the blocks while a program is built."""

from __future__ import annotations

from dataclasses import dataclass, field

from multiway.compiler.graph import Value


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The tokens of one input inside a sequence."""

    name: str
    modality: str
    hidden: Value  # its embedding
    tokens: Value | None  # their ids, if it has any
    padding: Value | None  # which of them are padded, if any can be


@dataclass(kw_only=True)
class Cache:
    """Keys and values of all layers while a program with a cache is built."""

    offset: Value
    layers: list[Value]  # key, value, key, value, ...
    slots: Value
    reads: bool  # decode attends to the cache; prefill to its own tokens, and only writes
    written: list[Value] = field(default_factory=list)


@dataclass(kw_only=True)
class Hiddens:
    """What blocks work on: hidden states of one or more joined segments, and what they need."""

    hidden: Value
    segments: tuple[Segment, ...]
    sizes: Value | None  # None for a single segment
    positions: Value | None = None  # for rotary
    mask: Value | None = None
    causal: bool | None = None  # None: as every block says
    cache: Cache | None = None
    cached: tuple[str, ...] = ()  # modalities of tokens that only the cache holds
    tokens: Value | None = None  # ids of all segments, and what of them is padded: made when asked
    padding: Value | None = None
