"""Third-party plugins for tests: a module and the metadata of a distribution, in a folder that goes on the path."""

from __future__ import annotations

from pathlib import Path

QUANTIZER = """
import rqat

class Options(rqat.Options):
    strength: float = 0.5

class Acme(rqat.Quantizer):
    def quantize_linear(self, weight, stats, scheme):
        raise NotImplementedError

@rqat.hookimpl
def register_quantizers(register):
    register("{name}", options=Options, load="{load}", summary="a test")
"""


def write_plugin(
    folder: Path, distribution: str, code: str, *, module: str | None = None, entry: str | None = None
) -> str:
    """Writes a plugin as pip would have installed it into `folder`; returns its module's name."""
    module = module or distribution.replace("-", "_")
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    write_metadata(folder, distribution, entry or module)
    return module


def write_metadata(folder: Path, distribution: str, entry: str) -> None:
    """Writes the metadata of an installed distribution with one entry point."""
    info = folder / f"{distribution.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[rqat]\n{distribution} = {entry}\n", encoding="utf-8")
