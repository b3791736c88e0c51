"""What servers make of exported files: seen by starting them, written down in `assets/servers.csv`.

One line of the table is one server, at one version, with one format, width, kind of zero point and group size, and what
became of it. `tests/servers` starts the servers and writes the table; `rqat plan`, model cards and
`docs/howto/serve.md` read it, so none of them promises what nobody saw. Does not import torch.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .model.families import Layout
from .model.layers import HEAD
from .scheme import ROW, Scheme

TABLE = Path(__file__).parent / "assets" / "servers.csv"

FUSING = ("vllm",)
"""Servers that compute the layers which read one input as a single one, and so want one scheme for them."""

BIASED = "+bias"
"""Behind a family's name, where its attention has biases."""

HEADLESS = {
    ("gptq", "transformers"): "it leaves the weights of a quantized lm_head out, and answers otherwise",
    ("compressed-tensors", "vllm"): "There is no module or parameter named 'lm_head.weight_packed'",
}
"""What becomes of a quantized head where a server does not read it, by format and server: seen by starting them."""

FAMILIES_APART = {
    ("gptq", "gptqmodel", "phi3"): "Missing required quantized weights in checkpoint: mlp.gate_proj, mlp.up_proj",
    ("awq", "gptqmodel", "phi3"): "it leaves the weights of gate_up_proj out, and answers otherwise",
    **dict.fromkeys(
        [(form, "vllm", f"qwen3{BIASED}") for form in ("compressed-tensors", "gptq", "awq")],
        "it leaves the bias of o_proj out, and answers otherwise",
    ),
    **dict.fromkeys(
        [(form, "transformers", "qwen3_moe") for form in ("compressed-tensors", "gptq", "awq")],
        "it reads no packed experts, and answers otherwise",
    ),
}
"""What becomes of families that a server takes for another model, by format, server and `called`: as above."""

EXPERTS: dict[tuple[str, str], frozenset[str]] = {
    ("compressed-tensors", "vllm"): frozenset({"w4g64-sym", "w4g128-sym"}),
    ("gptq", "vllm"): frozenset({"w4g32-sym", "w4g64-sym", "w4g128-sym", "w4-row-sym"}),
    ("awq", "vllm"): frozenset({"w4g32-sym", "w4g64-sym", "w4g128-sym", "w4g32", "w4g128"}),
    **dict.fromkeys(
        [("gptq", "gptqmodel"), ("awq", "gptqmodel")],
        frozenset({"w4g32-sym", "w4g64-sym", "w4g128-sym", "w4g32", "w4g128"}),
    ),
}
"""Schemes at which packed experts were seen to be read, by format and server: kernels for experts are others."""

MIXTURES = ("qwen3_moe",)
"""Families by `model_type` whose experts are packed."""

COMMANDS = {
    "transformers": "",
    "gptqmodel": "",
    "vllm": "vllm serve THIS_FOLDER",
    "vllm-cuda": "vllm serve THIS_FOLDER",
    "llama.cpp": "llama-server -m THIS_FOLDER/model.gguf",
    "mlx-lm": "mlx_lm.server --model THIS_FOLDER",
}
"""How each server is started on a folder; libraries are not."""


@dataclass(frozen=True)
class Trial:
    """One line of the table.

    Attributes:
        server: its name, a key of `COMMANDS`.
        version: its own, and of the package it was run through.
        format: name of the exporter.
        bits, symmetric, group: of the scheme of every layer; `ROW` is a whole row.
        loads: whether it answered from the file.
        difference: largest difference of logits, as a share of the largest logit; None where it was not measured.
        words: why it does not load, as it said so; or what else there is to know.
        read: nobody ran it: it stands so in the server's source.
    """

    server: str
    version: str
    format: str
    bits: int
    symmetric: bool
    group: int
    loads: bool
    difference: float | None = None
    words: str = ""
    read: bool = False

    def is_of(self, scheme: Scheme) -> bool:
        """Whether it was a file of this scheme."""
        return (self.bits, self.symmetric, self.group) == (scheme.bits, scheme.symmetric, scheme.group)


@dataclass(frozen=True)
class Outlook:
    """What is known of a server and a set of schemes.

    Attributes:
        loads: it was seen to load every one of them; False: it refused one; None: one was never tried.
        words: why it refused.
        difference: the largest of the differences of logits; None where one was not measured.
    """

    server: str
    version: str
    loads: bool | None
    words: str = ""
    difference: float | None = None


@cache
def trials() -> tuple[Trial, ...]:
    """The whole table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(_trial(row) for row in csv.DictReader(file))


def _trial(row: Mapping[str, str]) -> Trial:
    return Trial(
        server=row["server"],
        version=row["version"],
        format=row["format"],
        bits=int(row["bits"]),
        symmetric=row["zeros"] == "fixed",
        group=ROW if row["group"] == "row" else int(row["group"]),
        loads=row["outcome"] == "loads",
        difference=float(row["difference"]) if row["difference"] else None,
        words=row["words"].rstrip("."),
        read=row["how"] == "read",
    )


def outlooks(format_name: str, schemes: Iterable[Scheme]) -> list[Outlook]:
    """Every server that was run with a format, and what is known of it with all of these schemes together.

    Empty for a format that nobody tried: those of other plugins, and `rqat`, which rqat itself reads.
    """
    wanted = list(dict.fromkeys(schemes))
    tried = [trial for trial in trials() if trial.format == format_name and not trial.read]
    found = []
    for server in dict.fromkeys(trial.server for trial in tried):
        own = [trial for trial in tried if trial.server == server]
        of = [[trial for trial in own if trial.is_of(scheme)] for scheme in wanted]
        refused = [trial for each in of for trial in each if not trial.loads]
        loads = False if refused else True if all(of) else None
        differences = [trial.difference for each in of for trial in each]
        measured = [value for value in differences if value is not None]
        found.append(
            Outlook(
                server,
                own[-1].version,
                loads,
                refused[0].words if refused else "",
                max(measured) if loads and len(measured) == len(differences) else None,
            )
        )
    return found


def fused(format_name: str) -> bool:
    """Whether a server that fuses layers was seen to load files of a format."""
    return any(trial.format == format_name and trial.server in FUSING and trial.loads for trial in trials())


def torn_apart(layout: Layout, blocks: int, schemes: Mapping[str, Scheme]) -> list[tuple[str, ...]]:
    """Layers of one block that read the same input and differ in their scheme, or in having one, by their full names.

    Servers that fuse them (`FUSING`) refuse such a file. The first block that has such layers stands for all.

    Args:
        schemes: the scheme of every quantized layer, by full name.
    """
    found: dict[tuple[str, ...], tuple[str, ...]] = {}
    for index in range(blocks):
        for shared in layout.inputs:
            names = tuple(f"{layout.block(index)}.{name}" for name in shared.names)
            if len({schemes.get(name) for name in names}) > 1:
                found.setdefault(tuple(shared.names), names)
    return list(found.values())


def seen(
    format_name: str, schemes: Mapping[str, Scheme], torn: Sequence[tuple[str, ...]] = (), family: str = ""
) -> list[Outlook]:
    """`outlooks` of a model: servers that fuse layers refuse those that were torn apart, and some read no packed head.

    Args:
        torn: see `torn_apart`.
        family: see `called`; some are read otherwise than the one that the table was made with.
    """
    found = [
        Outlook(each.server, each.version, False, why)
        if each.loads is not False and (why := _against(format_name, each.server, schemes, torn, family))
        else each
        for each in outlooks(format_name, schemes.values())
    ]
    if family.removesuffix(BIASED) not in MIXTURES:
        return found
    wanted = {str(scheme) for scheme in schemes.values()}
    return [
        Outlook(each.server, each.version, None)
        if each.loads and not wanted <= EXPERTS.get((format_name, each.server), frozenset())
        else each
        for each in found
    ]


def called(config: Mapping[str, Any]) -> str:
    """What decides whether a server knows a model, by its config.json: the family, and whether attention has biases."""
    return f"{config.get('model_type', '')}{BIASED if config.get('attention_bias') else ''}"


def _against(
    format_name: str, server: str, schemes: Mapping[str, Scheme], torn: Sequence[tuple[str, ...]], family: str
) -> str:
    """Why a server does not load a model whose schemes it would load one by one; "" where nothing is known."""
    if torn and server in FUSING:
        names = " and ".join(name.rpartition(".")[2] for name in torn[0])
        return f"it computes {names} as one layer, and here their schemes differ"
    headless = HEADLESS.get((format_name, server), "") if HEAD in schemes else ""
    return headless or FAMILIES_APART.get((format_name, server, family), "")


def markdown(found: Sequence[Outlook]) -> str:
    """For a model card: which servers load it, how they are started, and which refuse it."""
    loading = [each for each in found if each.loads]
    names = ", ".join(f"{each.server} {each.version}" for each in loading)
    lines = [f"Seen to load it: {names}." if loading else "No server was seen to load it."]
    lines += [
        f"{each.server} {each.version} refuses it{f': {each.words}' if each.words else ''}."
        for each in found
        if each.loads is False
    ]
    commands = [COMMANDS[each.server] for each in loading if COMMANDS[each.server]]
    fence = ["", "```shell", *commands, "```"] if commands else []
    return "\n".join([*lines, *fence]) + "\n"
