"""What travels through the blocks while a program is built."""

from __future__ import annotations

from dataclasses import dataclass, field

from multiway.compiler.assemble.cache import Cache
from multiway.compiler.assemble.program import Program
from multiway.compiler.graph.layer_graph import Value


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The tokens of one input inside a sequence."""

    name: str
    modality: str
    hidden: Value  # its embedding
    tokens: Value | None  # their ids, if it has any
    padding: Value | None  # which of them are padded, if any can be


@dataclass(kw_only=True)
class Hiddens:
    """What blocks work on: hidden states of one or more joined segments, and what they need."""

    hidden: Value
    segments: tuple[Segment, ...]
    sizes: Value | None  # None for a single segment
    positions: Value | None = None  # for rotary
    rotary: dict[tuple[int, float], list[Value]] = field(default_factory=dict)  # its tables
    mask: Value | None = None
    causal: bool | None = None  # None: as every block says
    cache: Cache | None = None
    cached: tuple[str, ...] = ()  # modalities of tokens that only the cache holds
    tokens: Value | None = None  # ids of all segments, and what of them is padded: made when asked
    padding: Value | None = None


def tokens_of(program: Program, seq: Hiddens, index: int | None = None) -> Value:
    """The ids of the tokens of a segment, or of all."""
    segments = seq.segments if index is None else (seq.segments[index],)
    found = [segment.tokens for segment in segments if segment.tokens is not None]
    assert len(found) == len(segments), "the checks of a spec refuse hash routing without ids"
    if len(found) == 1:
        return found[0]
    if seq.tokens is None:
        seq.tokens = program.node("embed.ids", "concat", {"parts": found})
    return seq.tokens


def padding_of(program: Program, seq: Hiddens, index: int | None = None) -> Value | None:
    """What is padded in a segment, or in a whole sequence [B, T]; None where nothing can be."""
    if index is not None:
        return seq.segments[index].padding
    if not any(segment.padding for segment in seq.segments):
        return None
    if seq.padding is None:
        parts = [_flags(program, segment) for segment in seq.segments]
        seq.padding = parts[0]
        if len(parts) > 1:
            seq.padding = program.node("embed.padding", "concat", {"parts": parts})
    return seq.padding


def _flags(program: Program, segment: Segment) -> Value:
    path = f"embed.{segment.name}.no_padding"
    return segment.padding or program.node(path, "no_padding", {"x": segment.hidden})
