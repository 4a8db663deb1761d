"""transformers' GPT-NeoX of the size of a spec, to compare with."""

from __future__ import annotations

import time
from typing import Any

import torch

from multiway.runtime.measure.sides import Side, Work, step
from multiway.specs.errors import MultiwayError
from multiway.specs.language.block import Block, Rotary
from multiway.specs.language.inputs import Form
from multiway.specs.spec import Spec


def neox_side(spec: Spec, work: Work, *, dtype: torch.dtype, name: str = "hf") -> Side:
    """transformers' GPTNeoXForCausalLM with the numbers of a spec, and random weights.

    spec: with its head chosen. Raises MultiwayError where transformers is not there, or where the
    spec is no plain GPT-NeoX.
    """
    settings = neox_settings(spec)
    config = _transformers().GPTNeoXConfig(**settings)
    start = time.perf_counter()
    with torch.device("meta"):
        neox_model(config)
    seconds = time.perf_counter() - start
    torch.manual_seed(work.seed)
    model = neox_model(config).to(dtype)
    tokens = _tokens(settings, work)

    def loss() -> torch.Tensor:
        # It shifts the labels itself: one position less than ours, which counts for nothing here.
        found: torch.Tensor = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        return found

    return Side(
        name=name,
        run=step(
            model,
            lambda: model(input_ids=tokens, use_cache=False).logits,
            loss if work.train else None,
        ),
        tokens=tokens.numel(),
        program="loss" if work.train else "forward",
        compile_s=seconds,
        parameters=sum(p.numel() for p in model.parameters()),
    )


def neox_model(config: Any) -> Any:
    """transformers' model of a configuration, with its attention through torch's own function."""
    config._attn_implementation = "sdpa"
    return _transformers().GPTNeoXForCausalLM(config)


def _tokens(settings: dict[str, Any], work: Work) -> torch.Tensor:
    from multiway.runtime.measure.sides import LENGTH

    length = work.length or min(LENGTH, settings["max_position_embeddings"])
    generator = torch.Generator().manual_seed(work.seed)
    return torch.randint(0, settings["vocab_size"], (work.batch, length), generator=generator)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise MultiwayError.one(
            "missing-package",
            "a comparison with transformers needs the transformers package",
            place="--against hf",
            expected="pip install transformers",
        ) from None
    return transformers


def neox_settings(spec: Spec) -> dict[str, Any]:
    """Arguments of transformers' GPTNeoXConfig for a spec. Raises MultiwayError if there are none.

    spec: with its head chosen.
    """
    wrong = differences(spec)
    if wrong:
        raise MultiwayError.one(
            "not-neox",
            f"{spec.name} is no plain GPT-NeoX: {'; '.join(wrong)}",
            place="--against hf",
            expected="a spec like those of the family pythia",
        )
    block, source = spec.blocks[0], next(iter(spec.inputs.values()))
    position = block.attention.position
    assert isinstance(position, Rotary)
    longest = spec.tokens_of(next(iter(spec.inputs)))
    return {
        "vocab_size": int(source.vocab or 0),
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": int(block.attention.heads),
        "intermediate_size": int(block.ffn.hidden),
        "hidden_act": "gelu",
        "rotary_pct": position.fraction,
        "rotary_emb_base": position.base,
        "max_position_embeddings": longest or 2048,
        "layer_norm_eps": block.norm.eps if block.norm else 1e-5,
        "use_parallel_residual": block.order == "parallel",
        "tie_word_embeddings": bool(getattr(spec.head, "tie", False)),
    }


def differences(spec: Spec) -> list[str]:
    """In what a spec is no plain GPT-NeoX with parallel blocks, in words; empty if it is one."""
    block, head, inputs = spec.blocks[0], spec.head, list(spec.inputs.values())
    only_tokens = len(inputs) == 1 and inputs[0].form() == Form.TOKENS and not spec.embed
    norm = spec.output.norm
    plain_end = norm is not None and norm.kind in (None, "layer_norm") and norm.experts is None
    facts = {
        f"wiring {spec.wiring.use or 'of its own'}": spec.wiring.use != "residual",
        f"a head of kind {getattr(head, 'kind', '')}": getattr(head, "kind", "") != "causal_lm",
        "a bias in its head": bool(getattr(head, "bias", False)),
        "more inputs than token ids without learned positions": not only_tokens,
        "blocks that differ": any(each != block for each in spec.blocks),
        "another norm at the end": not plain_end,
    }
    return [what for what, holds in (facts | _of_block(block, spec.width)).items() if holds]


def _of_block(block: Block, width: int) -> dict[str, bool]:
    attention, ffn = block.attention, block.ffn
    position = attention.position
    heads = attention.heads
    norms = [each for each in (block.norm, attention.norm, ffn.norm) if each is not None]
    plain = all(n.kind in (None, "layer_norm") and n.weight and n.bias is not False for n in norms)
    parts: tuple[Any, ...] = (*norms, attention, ffn)
    return {
        f"{block.order} blocks": block.order != "parallel",
        "norms that are no layer norms": not plain,
        "routed parts": any(each.experts is not None for each in parts),
        "attention that is not causal": attention.mask != "causal",
        "norms of query and key": attention.qk_norm is not None,
        "fewer key than query heads": attention.kv_heads not in (None, heads),
        "heads of another width": attention.head_width not in (None, width // heads),
        "no rotary positions in halves": position is None or position.pairs != "half",
        "sub-norms": attention.sub_norm is not None or ffn.sub_norm is not None,
        "projections without bias": not (attention.bias and ffn.bias),
        "a gate": ffn.gate,
        f"activation {ffn.activation}": ffn.activation != "gelu",
    }
