"""Opens whatever a command may be given as MODEL: a Hugging Face model, an exported checkpoint, a step of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError

if TYPE_CHECKING:
    import transformers

    from ..generation.backend import Backend


def default_device() -> str:
    """ "cuda" where there is a CUDA device, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_any(
    path: str,
    *,
    offline: bool,
    revision: str | None = None,
    trust_remote_code: bool = False,
    backend: Backend = "auto",
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """The model at `path`, on the device there is, and its tokenizer.

    Raises:
        ModelError: there is none, it is damaged, or `path` is a whole run and not one of its steps; the backend is
            "packed" and the model is not quantized, or not in a way that can be packed.
    """
    from ..generation.backend import open_model
    from ..keys import ModelKeys
    from ..model.checkpoint import load_checkpoint
    from ..model.hub import QUANTIZED_FILE

    folder = Path(path)
    device = default_device()
    if backend != "packed" and (folder / QUANTIZED_FILE).is_file():
        checkpoint = load_checkpoint(folder, device=device)
        return checkpoint.model, checkpoint.tokenizer
    if folder.is_dir() and not (folder / "config.json").is_file():
        steps = sorted(str(found.parent) for found in folder.glob("*/config.json"))
        if steps:
            raise ModelError(f"'{path}' is a run, not a model.", hint=f"Name one of its models: {', '.join(steps)}.")
    keys = ModelKeys(path=path, revision=revision, trust_remote_code=trust_remote_code)
    return open_model(keys, device=device, offline=offline, backend=backend)
