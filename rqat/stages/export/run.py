"""Writes a quantized model in a format that servers load, and reads it back to prove it is the same model.

    <step>/model/
      config.json (with quantization_config), generation_config.json, tokenizer files, README.md
      model.safetensors, or numbered shards and an index
      or whatever else the format is made of

Two checks follow, on the files: an exporter that can decode must give back every code, scale and zero point bit by bit;
and where `from_pretrained` can load the format here, its logits are compared with those of the model in memory.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...contracts import Exporter
from ...errors import ModelError, NumericsError, PluginError
from ...job import Job, Progress
from ...model.checkpoint import load_checkpoint
from ...model.load import quiet
from ...model.reader import CheckpointReader
from ...model.stored import StoredTensors
from ...registry import Card
from ...stage import Step
from ...storage import write_text
from .card import model_card

if TYPE_CHECKING:
    import transformers

BATCH, TOKENS = 2, 24
"""Shape of the random input on which logits are compared."""

DEVICE_TOLERANCE = 2.0**-5
"""Largest difference of logits, as a share of the largest one, off the CPU: there the model computes in bfloat16 (eight
significant bits), and kernels may sum in another order from one call to the next. A wrong zero point moves more."""

SMALL = (".json", ".md", ".jinja", ".txt")
"""Endings of files beside the weights."""


def run(job: Job, step: Step) -> dict[str, Any]:
    """Exports the model of the step's `start`; see `export_checkpoint`."""
    return export_checkpoint(
        job.result_of(step.inputs["start"]),
        job.workdir(step) / "model",
        job.make(step, "exporter"),
        step.parts["exporter"].card,
        base=job.plan.model.path,
        device=job.device,
        progress=job.progress,
    )


def export_checkpoint(
    start: Path, folder: Path, exporter: Exporter, card: Card, *, base: str, device: str, progress: Progress
) -> dict[str, Any]:
    """Writes the quantized checkpoint in `start` into `folder`, which is emptied before, and checks what was written.

    Args:
        card: the exporter's.
        base: what the model before quantization is called, for the README.md.
        device: "cpu" or "cuda": where logits are compared.

    Returns:
        format, bytes, number of layers, layers left as they were, and the outcome of both checks.

    Raises:
        ModelError: the format cannot hold a layer, or transformers does not load the result.
        PluginError: a layer does not decode to what was exported, or nothing was written.
        NumericsError: the loaded model is not the one in memory.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    reader = CheckpointReader(start)
    with progress.task(f"export {card.name}", len(reader.layers)) as bar:
        reader.progress = bar.update
        exporter.write(folder, reader, reader.layers)
    weights = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in SMALL]
    if not weights:
        raise PluginError(
            f"exporter '{card.name}' wrote no weights into '{folder}'.", hint="Report this to the plugin's author."
        )
    write_text(folder / "README.md", model_card(base, reader.layers, card.name, exporter, reader.skipped))
    facts: dict[str, Any] = {
        "format": card.name,
        "scheme": ", ".join(map(str, dict.fromkeys(reader.layers.values()))),
        "layers": len(reader.layers),
        "left_as_they_were": reader.skipped,
        "float32_tensors": sum(reader.tensor(name).dtype == torch.float32 for name in reader.names),
        "bytes": sum(path.stat().st_size for path in weights),
        "decoded": check_layers(folder, exporter, card, reader),
    }
    return facts | check_logits(folder, exporter, card, start, device)


def logits_of(model: transformers.PreTrainedModel) -> Tensor:
    """Logits `(BATCH, TOKENS, V)`, float32 on the CPU, on tokens that depend on nothing but the vocabulary's size."""
    embeddings: Any = model.get_input_embeddings()
    tokens = torch.randint(0, embeddings.num_embeddings, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=tokens.to(model.device)).logits.float().cpu()


def check_layers(folder: Path, exporter: Exporter, card: Card, reader: CheckpointReader) -> str:
    """Decodes every layer from the files and compares it bit by bit; says what was found.

    Raises:
        PluginError: a layer is not what was exported.
    """
    if type(exporter).decode is Exporter.decode:
        return f"not checked: exporter '{card.name}' has no decode"
    stored, others = StoredTensors(folder), set(reader.names)
    for name, scheme in reader.layers.items():
        own = [key for key in stored.names if key.startswith(f"{name}.") and key not in others]
        decoded = exporter.decode(name, {key: stored.read(key) for key in own}, scheme).state()
        for part, tensor in reader.layer(name).state().items():
            if not decoded[part].equal(tensor):
                raise PluginError(
                    f"exporter '{card.name}' changes the {part} of {name}.",
                    hint="Its decode() is not the inverse of its tensors(); please report it to the plugin's author.",
                )
    return "every layer equal, bit by bit"


def check_logits(folder: Path, exporter: Exporter, card: Card, start: Path, device: str) -> dict[str, Any]:
    """Loads the folder as any user would and compares its logits with those of the checkpoint in `start`.

    Returns:
        `max_abs_diff` and `tolerance`, in logits; or `max_abs_diff: None` and why it was not measured.

    Raises:
        ModelError: transformers does not load it.
        NumericsError: it is another model.
    """
    import transformers

    packages = exporter.loader_packages
    missing = [name for name in packages or () if importlib.util.find_spec(name) is None]
    if packages is None or missing:
        why = f"{' and '.join(missing)} not installed" if missing else "transformers does not load this format"
        return {"max_abs_diff": None, "reload": f"not checked: {why}"}
    checkpoint = load_checkpoint(start, device=device)
    dtype, expected = checkpoint.model.dtype, logits_of(checkpoint.model)
    torch.nn.Module.to(checkpoint.model, "meta")  # frees its memory before the exported one is loaded
    try:
        # Loaders draw progress bars of their own, each through another library.
        with quiet(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
            found = logits_of(model.to(device).eval())
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"'{folder}' was written, but transformers {transformers.__version__} does not load it: "
            f"{' '.join(str(error).split())[:300]}.",
            hint="Install the versions of transformers and its helpers that rqat's own requirements name."
            if card.owner == "rqat"
            else f"The format comes with {card.owner} {card.version}; report it to the plugin's author.",
        ) from error
    share = exporter.loader_tolerance if device == "cpu" else max(exporter.loader_tolerance, DEVICE_TOLERANCE)
    difference, tolerance = float((found - expected).abs().max()), share * float(expected.abs().max())
    if not difference <= tolerance:
        raise NumericsError(
            f"'{folder}' is not the model that was exported: its logits differ by up to {difference:.3g} "
            f"(allowed: {tolerance:.3g}).",
            hint="Do not serve it. Try another checkpoint format, and report this with the versions of your packages.",
        )
    return {"max_abs_diff": difference, "tolerance": tolerance, "reload": f"transformers {transformers.__version__}"}
