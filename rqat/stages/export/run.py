"""Writes a quantized model as a Hugging Face folder that servers load, and reads it back to prove it is the same model.

    <step>/model/
      config.json (with quantization_config), generation_config.json, tokenizer files, README.md
      model.safetensors, or numbered shards and an index

Two checks follow, on the files: an exporter that can decode must give back every code, scale and zero point bit by bit;
and where `from_pretrained` can load the format here, its logits are compared with those of the model in memory.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from torch import Tensor

from ...contracts import Exporter, QuantizedWeight
from ...errors import ModelError, NumericsError, PluginError
from ...job import Job
from ...model.checkpoint import DENSE_FILE, load_checkpoint, read_tensors
from ...model.load import quiet
from ...plan import Step
from ...scheme import Scheme
from ...storage import explained, read_json, write_json, write_text
from .card import model_card

if TYPE_CHECKING:
    import transformers

SHARD = "5GB"
BATCH, TOKENS = 2, 24
"""Shape of the random input on which logits are compared."""

DEVICE_TOLERANCE = 2.0**-5
"""Largest difference of logits, as a share of the largest one, off the CPU: there the model computes in bfloat16 (eight
significant bits), and kernels may sum in another order from one call to the next. A wrong zero point moves more."""


def run(job: Job, step: Step) -> dict[str, Any]:
    """Exports the model of the step's `start`.

    Returns:
        format, bytes, number of layers, layers left as they were, and the outcome of both checks.

    Raises:
        ModelError: the format cannot hold a layer, or transformers does not load the result.
        PluginError: a layer does not decode to what was exported.
        NumericsError: the loaded model is not the one in memory.
    """
    start = job.result_of(step.inputs["start"])
    folder = job.workdir(step) / "model"
    exporter: Exporter = job.make(step, "exporter")
    card = step.parts["exporter"].card
    checkpoint = load_checkpoint(start, device=job.device)
    layers, scheme = checkpoint.layers, checkpoint.scheme
    linear = [name for name, module in checkpoint.model.named_modules() if isinstance(module, torch.nn.Linear)]
    skipped = [name for name in linear if name not in layers]
    dtype = checkpoint.model.dtype
    expected = logits_of(checkpoint.model)
    torch.nn.Module.to(checkpoint.model, "meta")  # frees its memory before the exported one is loaded

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    state, _ = read_tensors(start / DENSE_FILE)
    single = sorted(name for name, tensor in state.items() if tensor.dtype == torch.float32)
    tensors_of: dict[str, list[str]] = {}
    with job.progress.task(f"export {card.name}", len(layers)) as bar:
        for done, (name, layer) in enumerate(layers.items(), 1):
            packed = exporter.tensors(name, layer, scheme)
            tensors_of[name] = list(packed)
            state |= packed
            bar.update(done)
    with explained(folder):
        save_torch_state_dict(state, folder, max_shard_size=SHARD)
    del state
    write_config(start, folder, exporter.config(scheme, list(layers), skipped))
    write_tokenizer(checkpoint.tokenizer, folder)
    base = job.plan.model.path
    write_text(folder / "README.md", model_card(base, scheme, card.name, exporter, skipped))

    facts: dict[str, Any] = {
        "format": card.name,
        "scheme": str(scheme),
        "layers": len(layers),
        "left_as_they_were": skipped,
        "float32_tensors": len(single),
        "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "decoded": check_layers(folder, exporter, card.name, layers, tensors_of, scheme),
    }
    facts |= check_logits(folder, exporter, expected, job.device, dtype)
    return facts


def logits_of(model: transformers.PreTrainedModel) -> Tensor:
    """Logits `(BATCH, TOKENS, V)`, float32 on the CPU, on tokens that depend on nothing but the vocabulary's size."""
    embeddings: Any = model.get_input_embeddings()
    tokens = torch.randint(0, embeddings.num_embeddings, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=tokens.to(model.device)).logits.float().cpu()


def write_config(start: Path, folder: Path, quantization: dict[str, Any]) -> None:
    """Writes config.json and copies generation_config.json.

    The rotary embedding's parameters are written twice: transformers 4 knows only the older spelling and would silently
    take its own default for what it does not find.
    """
    config = read_json(start / "config.json")
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    write_json(folder / "config.json", config | {"quantization_config": quantization})
    if (start / "generation_config.json").exists():
        shutil.copy(start / "generation_config.json", folder)


def write_tokenizer(tokenizer: transformers.PreTrainedTokenizerBase, folder: Path) -> None:
    """Saves a tokenizer under the names that transformers 4 knows too; transformers 5 reads both."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    write_json(path, settings)


def check_layers(
    folder: Path,
    exporter: Exporter,
    format_name: str,
    layers: Mapping[str, QuantizedWeight],
    tensors_of: Mapping[str, list[str]],
    scheme: Scheme,
) -> str:
    """Decodes every layer from the files and compares it bit by bit; says what was found."""
    holder: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            holder |= dict.fromkeys(file.keys(), path)
    for name, layer in layers.items():
        tensors = {}
        for key in tensors_of[name]:
            with safe_open(holder[key], framework="pt") as file:
                tensors[key] = file.get_tensor(key)
        try:
            decoded = exporter.decode(name, tensors, scheme)
        except NotImplementedError:
            return f"not checked: exporter '{format_name}' has no decode"
        for part in ("codes", "scale", "zero"):
            if not torch.equal(getattr(decoded, part), getattr(layer, part).cpu()):
                raise PluginError(
                    f"exporter '{format_name}' changes the {part} of {name}.",
                    hint="Its decode() is not the inverse of its tensors(); please report it to the plugin's author.",
                )
    return "every layer equal, bit by bit"


def check_logits(folder: Path, exporter: Exporter, expected: Tensor, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Loads the folder as any user would and compares its logits with `expected`.

    Returns:
        `max_abs_diff` and `tolerance`, in logits; or `max_abs_diff: None` and why it was not measured.
    """
    import transformers

    packages = exporter.loader_packages
    missing = [name for name in packages or () if importlib.util.find_spec(name) is None]
    if packages is None or missing:
        why = f"{' and '.join(missing)} not installed" if missing else "transformers does not load this format"
        return {"max_abs_diff": None, "reload": f"not checked: {why}"}
    try:
        # Loaders draw progress bars of their own, each through another library.
        with quiet(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
            found = logits_of(model.to(device).eval())
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"'{folder}' was written, but transformers {transformers.__version__} does not load it: "
            f"{' '.join(str(error).split())[:300]}.",
            hint="Install the versions of transformers and its helpers that rqat's own requirements name.",
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
