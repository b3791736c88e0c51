"""Models and tokenizers small enough for any test, always the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import Fuse
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

CHARACTERS = "\n !\"#$%&'()*+,-./0123456789:;<=>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_abcdefghijklmnopqrstuvwxyz{|}\\"
SPECIAL = ("<pad>", "<eos>", "<unk>")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; `<pad>` is 0, `<eos>` 1, `<unk>` 2. Decoding gives the text back."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def tiny_config(
    *, hidden: int = 128, layers: int = 2, vocab: int = 128, tied: bool = True, context: int = 512
) -> Qwen3Config:
    """A Qwen3 shape with grouped queries: 4 heads, 2 for keys and values."""
    return Qwen3Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        tie_word_embeddings=tied,
        max_position_embeddings=context,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )


def tiny_model(
    seed: int = 0,
    *,
    hidden: int = 128,
    layers: int = 2,
    vocab: int = 128,
    tied: bool = True,
    context: int = 512,
) -> Qwen3ForCausalLM:
    """A random Qwen3 in float32 and eval mode, whose weights bfloat16 holds exactly."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = Qwen3ForCausalLM(tiny_config(hidden=hidden, layers=layers, vocab=vocab, tied=tied, context=context))
    finally:
        torch.set_rng_state(state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return model.eval()


def save_tiny(folder: Path, seed: int = 0, **shape: int | bool) -> Path:
    """Writes `tiny_model(seed, **shape)` in bfloat16 and its tokenizer into `folder`, as a Hugging Face checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_model(seed, **shape).bfloat16().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
