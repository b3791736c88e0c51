"""The README.md of an exported model: where it comes from and how to load it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePath

from ... import __version__
from ...contracts import Exporter
from ...model.families import layout_of
from ...model.layers import EMBEDDING, FEW, HEAD, kind_of
from ...model.reader import CheckpointReader
from ...scheme import ROW, Scheme
from ...servers import called, markdown, seen, torn_apart


def model_card(base: str, reader: CheckpointReader, format_name: str, exporter: Exporter, count: int) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        base: the recipe's `model.path`; a folder's name is kept, its path is not.
        reader: of the quantized model that was written.
        exporter: says how the format is loaded and served.
        count: bytes of its weights.
    """
    from huggingface_hub import ModelCardData

    layers = reader.layers
    on_hub = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base, re.ASCII) is not None
    name = base if on_hub else PurePath(base.removeprefix("builtin:")).name
    name = re.sub(r"[^\w./+ -]", "_", name)  # it may hold markup
    schemes = sorted(set(layers.values()), key=list(layers.values()).count, reverse=True)
    data = ModelCardData(
        base_model=base if on_hub else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["rqat", format_name, *(f"{scheme.bits}-bit" for scheme in schemes)],
        quantized_by="rqat",
        base_model_relation="quantized" if on_hub else None,
    )
    lines = ["---", data.to_yaml(), "---", "", f"# {name}, {' and '.join(map(str, schemes))}", ""]
    lines += [
        f"`{name}` with {' and '.join(map(_described, schemes))}, in the",
        f"`{format_name}` checkpoint format. Made with rqat {__version__}.",
        "",
        f"{count / 1e6:,.1f} MB, {8 * count / reader.parameters:.2f} bits per parameter in all.",
        f"Left as they were: {', '.join(_left(reader))}.",
        *(f"Quantized to `{scheme}` and stored in 16 bits: `{name}`." for name, scheme in reader.unpacked.items()),
        "",
    ]
    if exporter.loader_packages is not None and not (exporter.loader_packages and layout_of(reader.config).experts):
        packages = " ".join(package.replace("_", "-") for package in ("transformers", *exporter.loader_packages))
        lines += [
            "## Load it",
            "",
            "```shell",
            f"pip install {packages}",
            "```",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", dtype="auto")',
            'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
            "```",
            "",
        ]
    torn = torn_apart(layout_of(reader.config), reader.config.num_hidden_layers, layers)
    outlooks = seen(format_name, layers, torn, called(reader.config.to_dict()))
    told = [*([markdown(outlooks)] if outlooks else []), *([exporter.serving] if exporter.serving else [])]
    if told:
        lines += ["## Serve it", "", *told]
    return "\n".join(lines)


def _left(reader: CheckpointReader) -> list[str]:
    """What is as it was in the model before quantization."""
    ends = {**reader.layers, **reader.unpacked}
    shared = EMBEDDING in ends and bool(reader.config.get_text_config().tie_word_embeddings)
    linears = [name for name in reader.skipped if not (shared and name == HEAD)]
    kinds = Counter(map(kind_of, linears))
    told = (f"{kinds[kind_of(n)]} of `{kind_of(n)}`" if kinds[kind_of(n)] > FEW else f"`{n}`" for n in linears)
    return [*([] if EMBEDDING in ends else ["the embeddings"]), "the norms", *dict.fromkeys(told)]


def _described(scheme: Scheme) -> str:
    zeros = "a fixed zero point" if scheme.symmetric else "an integer zero point"
    group = "output row" if scheme.group == ROW else f"{scheme.group} input features"
    return f"{scheme.bits}-bit weights (`{scheme}`): one scale and {zeros} per {group}"
