"""The tiny reasoner's tokenizer: one token per known word and per digit, single bytes for everything else.

It is built from `wording.py` alone, so the same source gives the same vocabulary. Any text survives
`decode(encode(text))`: what is no known word falls apart into bytes. Numbers are read digit by digit, which is what
makes the model compute rather than look up.
"""

from __future__ import annotations

import re

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .wording import NAMES, THINGS, sentences

PAD, EOS = "<|pad|>", "<|end|>"
VOCABULARY = 512
"""Entries (512 = 4 x 128), the last ones unused, so that the embedding's rows fill whole groups."""

_PIECE = r"\\boxed\{| ?[A-Za-z]+| ?[0-9]|."
# The texts are used as they are: a user turn is the prompt, an assistant turn the solution and the end token.
_CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, with pad token id 0, end token id 1 and `VOCABULARY` entries; there is no begin token."""
    letters = _byte_letters()
    tokens = [PAD, EOS, *letters.values()]
    tokens += [piece for piece in (_as_letters(word, letters) for word in _words()) if piece not in tokens]
    tokens += [f"<|unused{i}|>" for i in range(VOCABULARY - len(tokens))]
    if len(tokens) != VOCABULARY:
        raise ValueError(f"{len(tokens)} tokens are wanted but VOCABULARY is {VOCABULARY}: raise it by 128.")

    # `ignore_merges`: a piece that is in the vocabulary is one token. No merges: any other piece stays bytes.
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges=[], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        chat_template=_CHAT_TEMPLATE,
    )


def _words() -> list[str]:
    """Every piece of the domain's text that is longer than one byte, sorted."""
    text = " ".join(sentences()).replace("{who}", "").replace("{what}", "").replace("{n}", "")
    bare = {*re.findall("[A-Za-z]+", text), *NAMES, *THINGS}
    digits = {f" {digit}" for digit in range(10)}
    openers = {word for word in bare if word[0].isupper()}
    return sorted({f" {word}" for word in bare} | openers | digits | {"\\boxed{"})


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte, the alphabet of `ByteLevel`."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _as_letters(word: str, letters: dict[int, str]) -> str:
    return "".join(letters[byte] for byte in word.encode())
