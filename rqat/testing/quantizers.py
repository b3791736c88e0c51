"""The suite of quantizers."""

from __future__ import annotations

import copy
from typing import ClassVar, get_args

from ..contracts import Block, Statistic
from ..grids import grid_of
from ..scheme import Scheme
from .grid import expect_on_grid, same
from .suite import Suite, expect
from .tiny import block_stats, random_inputs, random_weight, stats_of, tiny_model


class QuantizerSuite(Suite):
    """Codes on the grid, scales every format can store, no side effects, and an error that is worth the bits.

    Class attributes:
        schemes: tried with every test.
    """

    kind = "quantizer"
    schemes: ClassVar[tuple[str, ...]] = ("w2g32", "w3g64-sym", "w4-row", "w8g128")

    def test_the_result_is_on_the_grid(self) -> None:
        """Shapes, dtypes, codes and zero points in range, scales snapped, for every scheme."""
        for scheme in map(Scheme.parse, self.schemes):
            weight, stats = random_weight(), stats_of(self.make())
            expect_on_grid(self.make().quantize_linear(weight, stats, scheme), weight.shape, scheme)

    def test_nothing_it_is_given_changes(self) -> None:
        """Weight and statistics are shared with others."""
        weight, stats = random_weight(), stats_of(self.make())
        before = copy.deepcopy((weight, stats))
        self.make().quantize_linear(weight, stats, Scheme.parse(self.schemes[0]))
        expect(weight.equal(before[0]), "quantize_linear changed the weight it was given")
        for name in get_args(Statistic):
            old, new = getattr(before[1], name, None), getattr(stats, name, None)
            expect(old is None or old.equal(new), f"quantize_linear changed the {name} it was given")

    def test_the_same_input_gives_the_same_result(self) -> None:
        """Whatever the state of the random generators."""
        import torch

        results = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            made = self.make()
            results.append(made.quantize_linear(random_weight(), stats_of(made), Scheme.parse(self.schemes[0])))
        expect(same(*results), "two calls with the same input differ")

    def test_the_output_is_closer_than_zero(self) -> None:
        """`|x (w - w_hat)|^2 < |x w|^2` at the fewest bits, and less than 1 % of it at 8 bits."""
        inputs, weight = random_inputs(), random_weight()
        whole = (inputs @ weight.T).square().sum()
        for spelling, share in (("w2g32", 1.0), ("w8g32", 0.01)):
            scheme = Scheme.parse(spelling)
            made = self.make().quantize_linear(weight, stats_of(self.make()), scheme)
            error = (inputs @ (weight - grid_of(scheme).decode_layer(made)).T).square().sum() / whole
            expect(error < share, f"{spelling}: the output error is {float(error):.3f} of the output, at most {share}")

    def test_odd_weights(self) -> None:
        """Rows of zeros stay zero; constant rows, huge and tiny values give finite scales."""
        weight = random_weight()
        weight[0], weight[1], weight[2, 5], weight[3] = 0.0, 0.3, 3e4, 1e-12
        for scheme in map(Scheme.parse, self.schemes):
            made = self.make().quantize_linear(weight, stats_of(self.make()), scheme)
            expect_on_grid(made, weight.shape, scheme)
            decoded = grid_of(scheme).decode_layer(made)
            expect(not decoded[0].any(), f"{scheme}: a row of zeros does not decode to zeros")

    def test_a_whole_block(self) -> None:
        """At 8 bits the block computes what it did: what was folded into one layer was taken out of the next."""
        import torch

        from ..model.families import layout_of

        model, _ = tiny_model()
        scheme, layout = Scheme.parse("w8g32"), layout_of(model.config)
        schemes = {name: scheme for shared in layout.inputs for name in shared.names}
        block = Block(layout.block(0), model.get_submodule(layout.block(0)), layout.inputs, schemes)
        tokens = torch.arange(64).view(2, 32) % model.config.vocab_size
        before = model(tokens).logits.detach()
        made = self.make().quantize_block(block, block_stats(model, block, tokens, self.make()))
        expect(sorted(made) == sorted(block.names()), f"quantize_block returned {sorted(made)}")
        for name, layer in made.items():
            expect_on_grid(layer, block.linear(name).weight.shape, scheme)
            block.linear(name).weight.data = grid_of(scheme).decode_layer(layer)
        error = float((model(tokens).logits.detach() - before).norm() / before.norm())
        expect(error < 0.05, f"at 8 bits the model's output moved by {100 * error:.1f} %, at most 5 %")
