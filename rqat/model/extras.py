"""What a checkpoint holds beside what is used of it, known from its files alone: told before anything is done with it.

Tensors that config.json does not ask for, generation settings that do not count here, a chat template that writes the
day's date, and files that a copy from the hub may lack. Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

from ..contracts import Problem
from ..contracts.options import expanded
from ..errors import ModelError, RqatError
from ..figures import few, size
from ..keys import ModelKeys
from .config import MLX, ModelConfig, mixes_blocks, read_config, weight_files
from .families import FAMILIES
from .foreign import ANOTHER, why_not_taken_over
from .foreign_shapes import has_plain_zeros, unsaid
from .hub import BUILTIN, GENERATION_FILE, QUANTIZED_FILE, uncertain_files
from .vocabulary import ORIGINAL, TEACHER, check_vocabularies

NO_SAMPLING = frozenset(
    {"_from_model_config", "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache"}
)
"""What generation_config.json may hold that does not change which tokens are written, and the end tokens, which count
here as well."""

OLD_SETTINGS = frozenset(
    {"do_sample", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size"}
    | {"num_beams", "length_penalty", "min_length", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens"}
)
"""Generation settings that config.json may hold, too."""

UNUSED = re.compile(r"rotary_emb\.inv_freq$|attn\.(masked_)?bias$")
"""Tensors that older versions of transformers saved and compute anew; nobody misses them."""

NO_WRITER = re.compile(r"For(?:Sequence|Token|Image|Audio)\w*Classification|ForQuestionAnswering|RewardModel")
"""Architectures with another head than one that writes text."""

LOADERS = {
    "compressed-tensors": {"compressed-tensors": "compressed_tensors"},
    "gptq": {"gptqmodel": "gptqmodel", "optimum": "optimum"},
    "awq": {"gptqmodel": "gptqmodel"},
}
"""What transformers needs to load a quantized checkpoint: for its `quant_method`, distributions and their modules."""

FLOATS = {"F16": "float16", "F32": "float32", "F64": "float64"}
"""What safetensors calls dtypes of weights that are not bfloat16."""

WIDER = {"bfloat16": ("F16", "F32", "F64"), "float32": ("F64",)}
"""Of those, which a dtype in memory does not hold."""

SAMPLES, SAMPLE_BYTES = 64, 4096
"""Of two tensors, to tell whether they are the same."""

DATE = "strftime_now"
"""What a chat template calls for the day's date."""


def remarks(config: ModelConfig, device: str = "cpu") -> Iterator[Problem]:
    """What a user is told of a model: warnings and notes, each with what to do.

    Args:
        device: "cpu" or "cuda", where it is to be computed with.
    """
    yield from _rounded(config, device)
    yield from _left_out(config, ", of the export as well")
    if config.folder is None:
        return
    if config.keys.revision and (config.keys.path.startswith(BUILTIN) or expanded(config.keys.path).is_dir()):
        text = f"'{config.keys.path}' is no hub model; revision '{config.keys.revision}' is not looked at."
        yield Problem(text, level="warning")
    if missing := uncertain_files(config.folder):
        yield Problem(
            f"the local cache of '{config.keys.path}' has no {' and no '.join(missing)}, and does not say whether the "
            "hub has; without it the model is asked in another way.",
            f"Fetch it once: hf download {config.keys.path}",
            level="warning",
        )
    if settings := _unused_settings(config):
        yield Problem(
            f"its generation settings are {', '.join(settings)}; not used here, where only the recipe's keys "
            "count, and exported as they are.",
            level="note",
        )
    if DATE in template_text(config.folder):
        yield Problem(
            "its chat template writes the day's date; here it is always 26 Jul 2024, so that every day gives the same "
            "result.",
            "A server writes its own.",
            level="note",
        )


def _left_out(config: ModelConfig, where: str = "") -> Iterator[Problem]:
    if left := unasked(config):
        yield Problem(
            f"'{config.keys.path}' holds {few(left, kind='tensors')}, which its config.json does not ask for; they are "
            f"left out{where}.",
            "If they matter, this is not the right kind of checkpoint for rqat.",
            level="warning",
        )


def _rounded(config: ModelConfig, device: str) -> Iterator[Problem]:
    """Whether weights have more digits on disk than in memory; those of quantized layers are codes."""
    auto = "bfloat16" if device.startswith("cuda") else "float32"
    dtype = auto if config.keys.dtype == "auto" else config.keys.dtype
    wider = [found for name, found in config.tensors.items() if found.dtype in WIDER[dtype] and not UNUSED.search(name)]
    if config.quantization is None and wider:
        share = sum(math.prod(tensor.shape) for tensor in wider) / max(1, config.parameters)
        kinds = " and ".join(sorted({FLOATS[tensor.dtype] for tensor in wider}))
        keep = " `model.dtype: float32` keeps them." if dtype == "bfloat16" else ""
        yield Problem(
            f"{100 * share:.3g} % of its weights are stored in {kinds}; in memory they are rounded to {dtype}.",
            keep.strip(),
            level="note",
        )


def check_checkpoint(config: ModelConfig) -> None:
    """Refuses what would be computed without parts of it, or stopped by another rule than it says.

    Raises:
        ModelError: it has another head than one that writes text, or tensors within its blocks that its config.json
            does not ask for; its head is tied to the embedding and stored as well, with other values; its
            generation_config.json is damaged.
    """
    for name in config.raw.get("architectures") or ():
        if NO_WRITER.search(str(name)):
            raise ModelError(
                f"'{config.keys.path}' is a {name}, which writes no text.", hint="Name a causal language model."
            )
    if config.quantization is None and (inside := [name for name in unasked(config) if _in_a_block(name, config)]):
        refuse_unasked(config.keys.path, inside)
    if config.folder is not None:
        if _head_apart(config, config.folder):
            refuse_second_head(config.keys.path)
        generation_settings(config.folder)


def refuse_second_head(path: str) -> NoReturn:
    """Refuses a model of which some readers would take the head, and others the embedding in its place."""
    raise ModelError(
        f"'{path}': its config.json ties lm_head to the embedding, and lm_head.weight is stored with other values: "
        "readers disagree on which of the two counts.",
        hint="If the head was trained, set tie_word_embeddings to false in config.json; else remove lm_head.weight.",
    )


def _head_apart(config: ModelConfig, folder: Path) -> bool:
    """Whether a tied head is stored, too, and differs from the embedding, as far as samples tell."""
    names = [f"{name}.weight" for name in (config.layout.embeddings, config.layout.head)]
    found = [config.tensors.get(name) for name in names]
    if not config.tied or found[1] is None or found[0] != found[1]:  # of another shape or dtype: loading tells
        return False
    first, second = (_samples(folder, name) for name in names)
    return first != second


def _samples(folder: Path, name: str) -> bytes:
    """Bytes of a tensor, spread evenly; none where they cannot be read, which loading tells."""
    with suppress(ValueError, TypeError, KeyError, IndexError, OSError, RecursionError, struct.error):
        for path in weight_files(folder):
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
                if name not in header:
                    continue
                start, end = header[name]["data_offsets"]
                found = []
                for number in range(SAMPLES):
                    place = (end - start) * number // SAMPLES
                    file.seek(8 + length + start + place)
                    found.append(file.read(min(SAMPLE_BYTES, end - start - place)))
                return b"".join(found)
    return b""


def check_loader(config: ModelConfig) -> None:
    """Refuses a quantized checkpoint whose parts do not fit, or that neither transformers nor rqat loads here."""
    method = str((config.quantization or {}).get("quant_method", ""))
    why: str | None = None  # not known before it is fetched
    if config.quantization is not None and config.folder is not None:
        why = why_not_taken_over(config.folder, config.quantization)
    if why == "" or not needs_decoding(config):
        return
    missing = _missing_loaders(method)
    if why and not missing and method != MLX:
        raise ModelError(why, hint=ANOTHER)
    if method == MLX:
        raise ModelError(
            f"'{config.keys.path}' is an MLX checkpoint of a kind that neither transformers loads nor rqat.",
            hint="Use mlx_lm, or the step of the run it was exported from.",
        )
    raise ModelError(
        f"'{config.keys.path}' is a{'n' if method == 'awq' else ''} {method} checkpoint; transformers loads it with "
        f"{' and '.join(missing)}, not installed here. {why or ''}".rstrip(),
        hint=f"Run: pip install {' '.join(missing)}. Or export it in another format.",
    )


def needs_decoding(config: ModelConfig) -> bool:
    """Whether a quantized checkpoint is of a kind that transformers does not load with what is installed."""
    method = str((config.quantization or {}).get("quant_method", ""))
    experts = method in LOADERS and bool(config.layout.router)  # which transformers computes otherwise
    return method == MLX or bool(_missing_loaders(method)) or experts or has_plain_zeros(config.tensors)


def _missing_loaders(method: str) -> list[str]:
    return [name for name, module in LOADERS.get(method, {}).items() if find_spec(module) is None]


def refuse_unasked(path: str, names: list[str]) -> None:
    """Refuses a model that would be computed without these tensors of its blocks."""
    raise ModelError(
        f"'{path}' has {few(names, kind='tensors')} within its blocks, which its config.json does not ask for: "
        "without them it is another model.",
        hint=unsaid(names) or "Mend config.json (attention_bias, mlp_bias, model_type), or fetch the model again.",
    )


def unasked(config: ModelConfig) -> list[str]:
    """Names of tensors that a model of a known family does not have; none where the family is not known."""
    if config.model_type not in FAMILIES or config.quantization is not None or mixes_blocks(config):
        return []
    layout = config.layout
    linears = [name for group in layout.inputs for name in group.names]
    router = [layout.router] if layout.router else []
    inside = {f"{name}.weight" for name in (*linears, *layout.norms, *router)} | {
        f"{name}.bias" for name in _biased(config)
    }
    asked = {f"{name}.weight" for name in (layout.embeddings, layout.norm, layout.head)}
    asked |= {f"{layout.block(index)}.{name}" for index, name in product(range(config.blocks), inside)}
    return sorted(name for name in config.tensors if name not in asked and not UNUSED.search(name))


def split_by_blocks(names: Iterable[str], config: ModelConfig) -> tuple[list[str], list[str]]:
    """Names of tensors within a model's blocks, and of the others; those that nobody misses are in neither."""
    counted = sorted(name for name in names if not UNUSED.search(name))
    return [n for n in counted if _in_a_block(n, config)], [n for n in counted if not _in_a_block(n, config)]


def generation_settings(folder: Path) -> dict[str, Any]:
    """generation_config.json; empty where there is none.

    Raises:
        ModelError: it is damaged, or its end tokens are no ids: both would be passed over in silence.
    """
    path = folder / GENERATION_FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"'{path}' cannot be read: {error}.", hint="Fetch the model again.") from error
    ends = found.get("eos_token_id") if isinstance(found, dict) else "no mapping"
    if not all(
        type(end) is int and end >= 0 for end in (ends if isinstance(ends, list) else [ends]) if end is not None
    ):
        what = f"eos_token_id is {ends!r}" if isinstance(found, dict) else "it is no mapping"
        raise ModelError(f"'{path}': {what}.", hint="An end token is an id, or a list of ids.")
    return found


def template_text(folder: Path) -> str:
    """All chat templates of a tokenizer, as text; "" where there is none."""
    found = [path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("*.jinja") if path.is_file()]
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        found.append(json.dumps(settings.get("chat_template") or ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        pass  # which loading the tokenizer tells
    return "\n".join(found)


def _unused_settings(config: ModelConfig) -> list[str]:
    assert config.folder is not None
    try:
        found = generation_settings(config.folder)
    except ModelError:  # which checking the model tells
        return []
    # Before there was a file of their own they stood in config.json, where transformers still finds them.
    found = {key: value for key, value in config.raw.items() if key in OLD_SETTINGS} | found
    return [
        f"{key} {_short(value)}"
        for key, value in found.items()
        if not (value is None or value is False or value in ([], {}))
        and key not in NO_SAMPLING
        and not key.startswith(("output_", "return_"))
    ]


def _biased(config: ModelConfig) -> list[str]:
    """Linear layers of a block that have a bias, by the name inside the block."""
    layout, raw = config.layout, config.raw
    attention = raw.get("attention_bias", config.model_type == "seed_oss")
    found = list(layout.qkv) if attention or config.model_type == "qwen2" else []
    if raw.get("attention_out_bias", attention and config.model_type != "seed_oss"):
        found.append(layout.out)
    return found + ([*layout.gate_up, layout.down] if raw.get("mlp_bias") else [])


def _in_a_block(name: str, config: ModelConfig) -> bool:
    found = re.match(re.escape(config.layout.blocks) + r"\.(\d+)\.", name)
    return found is not None and int(found[1]) < config.blocks


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 30 else f"{text[:27]}..."


def about_teacher(
    keys: ModelKeys, student: ModelConfig | None, max_tokens: int, *, offline: bool = False
) -> Iterator[Problem]:
    """What is wrong with the files of a teacher, and whether its tokens are the student's.

    Args:
        student: None where its files cannot be read, which others tell.
        max_tokens: longest row that it is to look at.
    """
    path = keys.path
    try:
        config = read_config(keys, offline=offline)
        if _is_step(config):
            raise ModelError(f"'{path}' is a step of a run.", hint="Name the folder of an exported model.")
    except RqatError as error:
        yield Problem(error.message, error.hint)
        return
    yield from _only_read(config, student, TEACHER, offline=offline)
    if config.context is not None and max_tokens > config.context:
        text = f"max_tokens is {max_tokens}, but the teacher's context is {config.context}."
        yield Problem(text, f"Use at most {config.context}.")
    if config.quantization is not None:
        method = config.quantization.get("quant_method", "an unknown method")
        hint = "What quantization cost it, the student learns too; distil from 16 or 32 bits if you can."
        yield Problem(f"'{path}' is quantized itself ({method}).", hint, level="warning")
    if config.folder is None:
        yield Problem(f"'{path}' will be fetched from the hub, {size(config.bytes)}.", level="note")


def about_original(keys: ModelKeys, model: ModelConfig | None, *, offline: bool = False) -> Iterator[Problem]:
    """What is wrong with the files of a model that others are compared with, and whether its tokens are theirs.

    Args:
        model: what the others were made from; None where its files cannot be read, which others tell.
    """
    try:
        config = read_config(keys, offline=offline)
    except RqatError as error:
        yield Problem(error.message, error.hint)
        return
    yield from _only_read(config, model, ORIGINAL, offline=offline)


def _is_step(config: ModelConfig) -> bool:
    return config.folder is not None and (config.folder / QUANTIZED_FILE).is_file()


def _only_read(
    config: ModelConfig, other: ModelConfig | None, called: tuple[str, str], *, offline: bool
) -> Iterator[Problem]:
    """What loading a model would refuse, and what it would leave out; whether its tokens are those of another."""
    try:
        if not _is_step(config):
            check_checkpoint(config)
            check_loader(config)
        theirs = config.vocabulary(offline=offline)
    except RqatError as error:
        yield Problem(error.message, error.hint)
        return
    if not _is_step(config):  # which has its weights in two files
        yield from _left_out(config)
    try:
        mine = other.vocabulary(offline=offline) if other else None
    except RqatError:
        mine = None  # which loading the model reports
    if theirs is not None and mine is not None:
        try:
            check_vocabularies(theirs, mine, called)
        except RqatError as error:
            yield Problem(f"'{config.keys.path}': {error.message}", error.hint)
