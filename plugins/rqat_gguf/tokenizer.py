"""A tokenizer as llama.cpp reads it: byte-level BPE with one of the ways to cut a text up that are built in there."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import rqat

if TYPE_CHECKING:
    import gguf
    import transformers

LENGTH, KIND = 8, 4
"""Bytes of a text's length in the file, and of what kind a token is."""

log = logging.getLogger("rqat")

LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

SPLITS = {f"{LETTERS}\\p{{N}}{REST}": "qwen2", f"{LETTERS}\\p{{N}}{{1,3}}{REST}": "llama-bpe"}
"""What llama.cpp calls a way to cut a text up, by its regular expression."""

ANOTHER = "Export as bf16 and convert that with llama.cpp's own script, or in another format."


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: transformers.PreTrainedTokenizerBase, rows: int) -> None:
    """Writes vocabulary, merges, special tokens and chat template.

    Args:
        rows: of the embedding; ids that no token has are filled up.

    Raises:
        ModelError: a tokenizer of another kind.
    """
    import gguf

    found = contents_of(tokenizer)
    way = cutting(found)
    vocabulary = {index: text for text, index in found["model"]["vocab"].items()}
    added = {token["id"]: token for token in found.get("added_tokens") or []}
    tokens, types = [], []
    for index in range(rows):
        if index in added:
            tokens.append(added[index]["content"])
            special = added[index]["special"]
            types.append(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
        elif index in vocabulary:
            tokens.append(vocabulary[index])
            types.append(gguf.TokenType.NORMAL)
        else:
            tokens.append(f"[PAD{index}]")
            types.append(gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(way)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = found["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for kind in ("bos", "eos", "pad", "unk"):
        index = getattr(tokenizer, f"{kind}_token_id")
        if index is not None:
            getattr(writer, f"add_{kind}_token_id")(index)
    start = tokenizer("a")["input_ids"][:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and start == [tokenizer.bos_token_id])
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        others = ", ".join(sorted(templates.keys() - {"default"}))
        if others:
            log.warning("gguf: the file has one chat template, the default; left out: %s.", others)
        templates = templates.get("default")
    if templates:
        writer.add_chat_template(templates)


def bytes_of(tokenizer: transformers.PreTrainedTokenizerBase, rows: int) -> int:
    """What `add_tokenizer` adds to a file, at most.

    Raises:
        ModelError: there is no tokenizer.json.
    """
    found = contents_of(tokenizer)
    texts = [*found["model"]["vocab"], *(token["content"] for token in found.get("added_tokens") or [])]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in found["model"].get("merges") or []]
    filled = max(0, rows - len(found["model"]["vocab"])) * len(f"[PAD{rows}]")
    written = sum(len(text.encode(errors="replace")) for text in (*texts, *merges)) + filled
    given = tokenizer.chat_template or ""
    templates = given.values() if isinstance(given, dict) else [given]
    template = max((len(text.encode()) for text in templates), default=0)
    return written + LENGTH * (rows + len(merges)) + KIND * rows + template


def cutting(found: dict[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer cuts a text up before it merges.

    Args:
        found: tokenizer.json.

    Raises:
        ModelError: none of those that are known here.
    """
    given = found.get("pre_tokenizer") or {}
    parts = given.get("pretokenizers", [given])
    kinds = [part.get("type") for part in parts]
    if found["model"]["type"] == "BPE" and kinds[-1:] == ["ByteLevel"] and not parts[-1].get("add_prefix_space"):
        regex = parts[0].get("pattern", {}).get("Regex")
        if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and parts[1].get("use_regex", True):
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and regex in SPLITS:
            return SPLITS[regex]
    cuts = " and ".join(map(str, kinds)) if any(kinds) else "nothing"
    raise rqat.ModelError(
        f"gguf: a tokenizer of the type {found['model']['type']} that cuts texts up by {cuts} is none that is known "
        "to be in llama.cpp.",
        hint=ANOTHER,
    )


def contents_of(tokenizer: transformers.PreTrainedTokenizerBase) -> dict[str, Any]:
    """tokenizer.json.

    Raises:
        ModelError: there is none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise rqat.ModelError("gguf: the tokenizer has no tokenizer.json.", hint=ANOTHER)
    contents: dict[str, Any] = json.loads(backend.to_str())
    return contents
