"""The suite of exporters."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from ..contracts import Context, Exporter, ModelShape, Problem
from ..scheme import Scheme
from .grid import same
from .suite import Suite, expect
from .tiny import IN, random_weight, rounded, save_rounded

SMALL = (".json", ".jinja", ".txt")
"""Endings of files beside the weights."""


class ExporterSuite(Suite):
    """What is written can be read back to the bit, in about as many bytes as the scheme promises.

    Class attributes, for subclasses to set:
        schemes: those that are tried; what the options' `check` refuses is left out.
    """

    kind = "exporter"
    schemes: ClassVar[tuple[str, ...]] = tuple(
        f"w{bits}{group}{sym}" for bits in (2, 3, 4, 8) for group in ("g32", "g128", "-row") for sym in ("", "-sym")
    )
    layer: ClassVar[str] = "model.layers.0.mlp.up_proj"

    def test_it_writes_a_whole_model(self) -> None:
        """Into an empty folder; and with `decode`, every layer is read back from it to the bit.

        The embedding is among them where the card says that the format packs it.
        """
        accepted = [scheme for scheme in self._accepted() if scheme.divides(64)]
        for scheme in accepted[:: max(1, len(accepted) // 4)]:
            with tempfile.TemporaryDirectory() as name:
                self._write(Path(name), scheme)

    def _write(self, parent: Path, scheme: Scheme) -> None:
        from ..model.exported import check_layers
        from ..model.reader import CheckpointReader

        start, folder = parent / "start", parent / "model"
        start.mkdir()
        folder.mkdir()
        save_rounded(start, scheme, embedding=self.card.embedding)
        reader, made = CheckpointReader(start), self.make()
        made.write(folder, reader, reader.layers)
        written = [path for path in folder.rglob("*") if path.is_file()]
        expect(any(path.suffix not in SMALL for path in written), f"{scheme}: no weights were written")
        expect(not (folder / "README.md").exists(), f"{scheme}: README.md is the host's to write")
        check_layers(folder, made, self.name, reader)

    def test_decode_inverts_tensors(self) -> None:
        """Codes, scales and zero points, for every scheme that is not refused."""
        made: Exporter = self.make()
        if self._writes_itself(made) or type(made).decode is Exporter.decode:
            return
        for scheme in self._accepted():
            weight = rounded(random_weight(64), scheme)
            decoded = made.decode(self.layer, made.tensors(self.layer, weight), scheme)
            expect(same(decoded, weight), f"{scheme}: decoding gives other codes, scales or zero points")

    def test_tensors_can_be_saved(self) -> None:
        """Named after the layer, contiguous, and not much larger than promised (or than 16 bits, if not packed)."""
        made: Exporter = self.make()
        if self._writes_itself(made):
            return
        for scheme in self._accepted():
            tensors = made.tensors(self.layer, rounded(random_weight(64), scheme))
            for name, tensor in tensors.items():
                expect(name.startswith(f"{self.layer}."), f"{scheme}: '{name}' is not named after its layer")
                expect(tensor.is_contiguous(), f"{scheme}: '{name}' is not contiguous")
            bits = 8 * sum(tensor.nbytes for tensor in tensors.values()) / (64 * IN)
            packed = made.config({self.layer: scheme}, ["lm_head"]) is not None
            bound = scheme.bits_per_weight() + 1.5 if packed else 16.0
            expect(bits <= bound, f"{scheme}: {bits:.2f} bits per weight, promised about {bound:.2f}")

    def test_the_config_is_json(self) -> None:
        """It names the method and holds nothing that config.json cannot; or there is none."""
        made: Exporter = self.make()
        if self._writes_itself(made):
            return
        for scheme in self._accepted():
            config = made.config({self.layer: scheme}, ["lm_head"])
            expect(json.loads(json.dumps(config)) == config, f"{scheme}: config is not plain JSON")
            expect(config is None or config.get("quant_method"), f"{scheme}: config names no quant_method")

    def test_some_scheme_is_accepted(self) -> None:
        """And refusals are sentences."""
        problems = [problem for text in self.schemes for problem in self._refusals(Scheme.parse(text))]
        expect(all(isinstance(problem, Problem) and problem.text for problem in problems), "check() gives no Problems")
        expect(any(self._accepted()), f"every scheme is refused: {problems[0].text if problems else ''}")

    @staticmethod
    def _writes_itself(made: Exporter) -> bool:
        """Whether it overrides `write` and so needs no `tensors` and no `config`."""
        return type(made).write is not Exporter.write

    def _accepted(self) -> Iterator[Scheme]:
        yield from (scheme for scheme in map(Scheme.parse, self.schemes) if not self._refusals(scheme))

    def _refusals(self, scheme: Scheme) -> list[Problem]:
        """What its options say against a scheme, on a layer of a shape that every format takes."""
        model = ModelShape("tiny", "qwen3", {self.layer: (64, IN)}, 64, 99, 2, True, 256)
        context = Context(schemes={self.layer: scheme}, model=model)
        problems = self._registry.options(self.card, self.options).check(context)
        return [problem for problem in problems if problem.level == "error"]
