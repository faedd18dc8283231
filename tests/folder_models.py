"""Tiny causal language models with a tokenizer, made here and saved as Hugging Face's transformers does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

TEXT = ["Return the value of the object.", "The file is closed when an error is raised.", "Called if there is none."]


def save_tokenizer(folder: Path) -> int:
    """A byte-level BPE tokenizer with a token that begins and one that ends a text; returns its vocabulary."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXT * 10, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return int(tokenizer.get_vocab_size())


def save_llama(folder: Path, seed: int = 0, **more: Any) -> Path:
    """Two layers, four heads that share two of keys and values, a context of 64."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        **{
            **sizes,
            "num_key_value_heads": 2,
            "vocab_size": save_tokenizer(folder),
            "max_position_embeddings": 64,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "initializer_range": 0.4,  # so that some tokens are clearly likelier than others
            **more,
        }
    )
    torch.manual_seed(seed)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_gpt2(folder: Path) -> Path:
    """Two layers, tied embeddings, learnt positions, a context of 48."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    config = transformers.GPT2Config(
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=48,
        vocab_size=save_tokenizer(folder),
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.4,
    )
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder
