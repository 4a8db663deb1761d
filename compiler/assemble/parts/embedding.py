"""Embeddings: from token ids, feature vectors or patches of an image to hidden states."""

from __future__ import annotations

from collections.abc import Mapping

from multiway.compiler.assemble.parameters import Declared, start_of
from multiway.compiler.assemble.program import Program
from multiway.compiler.graph.layer_graph import Value
from multiway.specs.language.inputs import Embed, Form, Input, Learned


def declare(declared: Declared) -> None:
    """The embeddings of all modalities. Inputs of one modality share theirs."""
    spec = declared.spec
    for modality in spec.modalities:
        each = spec.inputs[spec.inputs_of(modality)[0]]
        embed, path = spec.embed.get(modality), f"embed.{modality}"
        if each.form() == Form.IMAGE:
            assert embed is not None
            _declare_image(declared, path, each, embed)
        else:
            _declare_sequence(declared, path, each, embed)
        if embed is not None and embed.position is not None:
            shape = (spec.learned_rows(modality), spec.width)
            start = start_of("add_position", "weight")
            declared.add(f"{path}.position.weight", shape, start, embed.position)


def _declare_sequence(declared: Declared, path: str, each: Input, embed: Embed | None) -> None:
    width = declared.spec.width
    if each.form() == Form.TOKENS:
        assert each.vocab is not None
        declared.add(f"{path}.weight", (each.vocab, width), start_of("embedding", "weight"), each)
        return
    assert each.features is not None
    bias = embed is None or embed.bias
    declared.linear(f"{path}.project", out=width, width=each.features, bias=bias, part=each)


def _declare_image(declared: Declared, path: str, each: Input, embed: Embed) -> None:
    width, patch = declared.spec.width, embed.patch
    assert patch is not None
    shape = (width, each.channels, patch.size, patch.size)
    declared.add(f"{path}.patch.weight", shape, start_of("patch_embed", "weight"), embed)
    if patch.bias:
        declared.add(f"{path}.patch.bias", (width,), start_of("patch_embed", "bias"), embed)
    if embed.mask_token:
        start = start_of("mask_tokens", "token")
        declared.add(f"{path}.mask_token", (1, 1, width), start, embed)
    if embed.cls:
        declared.add(f"{path}.cls", (1, 1, width), start_of("prepend_token", "token"), embed)


def build(program: Program, name: str, values: Mapping[str, Value]) -> Value:
    """The embedding [B, T, D] of one input.

    values: by name the input itself, and NAME_masked, NAME_positions, NAME_padding where there are.
    """
    each = program.spec.inputs[name]
    embed = program.spec.embed.get(each.modality)
    path, params = f"embed.{name}", f"embed.{each.modality}"
    x = _embedded(program, name, values)
    position = embed.position if embed else None
    if isinstance(position, Learned):
        where = values.get(f"{name}_positions")
        if where is None:
            where = program.node(f"{path}.positions", "positions", {"x": x})
        x = program.node(
            f"{path}.position",
            "add_position",
            {"x": x, "positions": where},
            attrs={"offset": position.offset},
            params=f"{params}.position",
            part=position,
        )
    padding = values.get(f"{name}_padding")
    if padding is not None:
        x = program.node(f"{path}.padded", "zero_padding", {"x": x, "padding": padding})
    return x


def _embedded(program: Program, name: str, values: Mapping[str, Value]) -> Value:
    """Without positions."""
    each, x = program.spec.inputs[name], values[name]
    path, params = f"embed.{name}", f"embed.{each.modality}"
    if each.form() == Form.TOKENS:
        return program.node(f"{path}.tokens", "embedding", {"tokens": x}, params=params, part=each)
    if each.form() == Form.FEATURES:
        return program.linear(f"{path}.project", x, part=each, params=f"{params}.project")
    embed = program.spec.embed[each.modality]
    patch = f"{params}.patch"
    x = program.node(f"{path}.patch", "patch_embed", {"image": x}, params=patch, part=embed.patch)
    if (masked := values.get(f"{name}_masked")) is not None:
        given, token = {"x": x, "masked": masked}, {"token": f"{params}.mask_token"}
        x = program.node(f"{path}.masked", "mask_tokens", given, params=token, part=embed)
    if embed.cls:
        token = {"token": f"{params}.cls"}
        x = program.node(f"{path}.cls", "prepend_token", {"x": x}, params=token, part=embed)
    return x
