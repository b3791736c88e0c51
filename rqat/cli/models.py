"""Opens whatever a command may be given as MODEL: a Hugging Face model, an exported checkpoint, a step of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    keys = ModelKeys(path=path, revision=revision, trust_remote_code=trust_remote_code)
    return open_model(keys, device=default_device(), offline=offline, backend=backend)
