"""What the keys of every stage are made of: mappings with a recipe's keys, and those that more than one stage reads.

Each stage keeps its own keys in its room, `rqat/stages/<name>/__init__.py`. Keys a plugin owns (`damp` of gptq,
`temperature` of kd) stand beside the host's in the same mapping; here they are pydantic "extras", and `plan.py`
validates them with the plugin's own `Options`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from .contracts import Neutral as Neutral
from .contracts import Split
from .contracts.data import spelled_source
from .contracts.options import Seed as Seed
from .contracts.options import expanded


class Keys(BaseModel):
    """A mapping with the host's keys only.

    Class attributes:
        named_by: the key that a plain text in place of the mapping stands for; "" allows none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    named_by: ClassVar[str] = ""


class PluginKeys(BaseModel):
    """A mapping that also carries the options of one plugin.

    Class attributes:
        named_by: the key that names the plugin's part; a plain text in place of the mapping stands for it.
        number_for: the key that a plain number in place of the mapping stands for.
        kinds: what it may be: "quantizer", "source", ...; the usual one first. No option may be called like one of
            this mapping's own keys.
        follows: the key that holds, in order, the parts in front of this one, where a list of parts is written in place
            of the mapping; "" allows no list.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    named_by: ClassVar[str] = ""
    number_for: ClassVar[str] = ""
    kinds: ClassVar[tuple[str, ...]] = ()
    follows: ClassVar[str] = ""

    @property
    def options(self) -> dict[str, Any]:
        """What is left for the plugin."""
        return dict(self.model_extra or {})

    @property
    def part(self) -> str:
        """Name of the plugin's part."""
        return str(getattr(self, self.named_by))


class ModelKeys(Keys):
    """Which model. In a recipe a plain string is short for `{path: ...}`.

    Attributes:
        path: folder, hub name, or `builtin:tiny-reasoner`; `~` and `$VARIABLES` stand for what they do in a shell.
        revision: hub revision; None is the default branch.
        dtype: dtype of the model in memory; `auto` is float32 on CPU and bfloat16 on CUDA.
        trust_remote_code: run modelling code that comes with the checkpoint; a recipe file cannot set it, `--set` can.
    """

    named_by: ClassVar[str] = "path"

    path: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    trust_remote_code: bool = False

    @field_validator("path")
    @classmethod
    def _expanded(cls, path: str) -> str:
        """What `~` and `$VARIABLES` stand for: the model is called by that in messages, reports and cards."""
        return str(expanded(path)) if path.startswith("~") or "$" in path else path


class DataKeys(PluginKeys):
    """Rows from a source; what remains are the source's options.

    Attributes:
        source: its name, or the path of a .jsonl, .json, .csv, .tsv, .parquet or .txt file, which may end in .gz.
        split: which of its rows.
        seed: their order.
    """

    named_by: ClassVar[str] = "source"
    kinds: ClassVar[tuple[str, ...]] = ("source",)

    source: str
    split: Split = "train"
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, given: Any) -> Any:
        return spelled_source(given)
