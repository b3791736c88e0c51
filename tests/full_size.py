"""Writes a random-weight model of Qwen3-0.6B's exact configuration to disk, for runs at full size without a model hub.

    python tests/full_size.py OUT --tokenizer tokenizer.json

The tokenizer is any `tokenizers` file of Qwen's vocabulary (gzipped or not). Weights are bfloat16 from a fixed seed.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path


def write_qwen3_06b(out: Path, tokenizer_file: Path, *, layers: int = 28) -> None:
    """Saves config, bfloat16 safetensors (1.2 GB with all 28 layers) and tokenizer to `out`."""
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    opened = gzip.open if tokenizer_file.suffix == ".gz" else open
    with opened(tokenizer_file, "rt", encoding="utf-8") as file:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(file.read()), eos_token="<|im_end|>", pad_token="<|endoftext|>"
        )
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=28)
    arguments = parser.parse_args()
    write_qwen3_06b(arguments.out, arguments.tokenizer, layers=arguments.layers)
