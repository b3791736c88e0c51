"""The suite of exporters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import ClassVar

from ..contracts import Context, Exporter, Problem
from ..scheme import Scheme
from .grid import same
from .suite import Suite, expect
from .tiny import IN, random_weight, rounded


class ExporterSuite(Suite):
    """What is written can be read back to the bit, in about as many bytes as the scheme promises."""

    kind = "exporter"
    schemes: ClassVar[tuple[str, ...]] = tuple(
        f"w{bits}{group}{sym}" for bits in (2, 3, 4, 8) for group in ("g32", "g128", "-row") for sym in ("", "-sym")
    )
    layer: ClassVar[str] = "model.layers.0.mlp.up_proj"

    def test_decode_inverts_tensors(self) -> None:
        """Codes, scales and zero points, for every scheme that is not refused."""
        for scheme in self._accepted():
            made: Exporter = self.make()
            weight = rounded(random_weight(64), scheme)
            tensors = made.tensors(self.layer, weight)
            try:
                decoded = made.decode(self.layer, tensors, scheme)
            except NotImplementedError:
                return
            expect(same(decoded, weight), f"{scheme}: decoding gives other codes, scales or zero points")

    def test_tensors_can_be_saved(self) -> None:
        """Named after the layer, contiguous, and not much larger than promised."""
        for scheme in self._accepted():
            tensors = self.make().tensors(self.layer, rounded(random_weight(64), scheme))
            for name, tensor in tensors.items():
                expect(name.startswith(f"{self.layer}."), f"{scheme}: '{name}' is not named after its layer")
                expect(tensor.is_contiguous(), f"{scheme}: '{name}' is not contiguous")
            bits = 8 * sum(tensor.nbytes for tensor in tensors.values()) / (64 * IN)
            bound = scheme.bits_per_weight() + 1.5
            expect(
                bits <= bound, f"{scheme}: {bits:.2f} bits per weight, promised about {scheme.bits_per_weight():.2f}"
            )

    def test_the_config_is_json(self) -> None:
        """It names the method and holds nothing that config.json cannot."""
        for scheme in self._accepted():
            config = self.make().config({self.layer: scheme}, ["lm_head"])
            expect(json.loads(json.dumps(config)) == config, f"{scheme}: config is not plain JSON")
            expect(config.get("quant_method"), f"{scheme}: config names no quant_method")

    def test_some_scheme_is_accepted(self) -> None:
        """And refusals are sentences."""
        problems = [problem for text in self.schemes for problem in self._refusals(Scheme.parse(text))]
        expect(all(isinstance(problem, Problem) and problem.text for problem in problems), "check() gives no Problems")
        expect(any(self._accepted()), "every scheme is refused")

    def _accepted(self) -> Iterator[Scheme]:
        for scheme in map(Scheme.parse, self.schemes):
            if not self._refusals(scheme):
                yield scheme

    def _refusals(self, scheme: Scheme) -> list[Problem]:
        """What its options say against a model whose layers all have this scheme."""
        context = Context(schemes={self.layer: scheme})
        problems = self._registry.options(self.card, self.options).check(context)
        return [problem for problem in problems if problem.level == "error"]
