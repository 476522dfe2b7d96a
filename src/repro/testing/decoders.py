"""Small random decoders of `transformers`, on which functions for any language model are tested."""

import importlib.util
from typing import Any

import pytest
import torch

from repro.testing.norms import quiet_import

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="the extra `test` has transformers, which is not here"
)


def tiny_decoder(kind: str, depth: int) -> Any:
    """Return a random decoder of 11 symbols, in float64, with blocks that do something.  kind: GPT2, Llama or Qwen2."""
    transformers = quiet_import("transformers")
    torch.manual_seed(0)
    same = {"vocab_size": 11, "initializer_range": 0.5, "pad_token_id": None, "eos_token_id": None}
    if kind == "GPT2":
        config = transformers.GPT2Config(n_embd=8, n_layer=depth, n_head=2, n_positions=8, **same)
        return transformers.GPT2LMHeadModel(config).double().eval()
    same |= {"hidden_size": 8, "num_hidden_layers": depth, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = getattr(transformers, f"{kind}Config")(intermediate_size=12, max_position_embeddings=8, **same)
    return getattr(transformers, f"{kind}ForCausalLM")(config).double().eval()


def decoder_blocks(model: Any) -> torch.nn.ModuleList:
    """Return the list of blocks of such a decoder."""
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers
