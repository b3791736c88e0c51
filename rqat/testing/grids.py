"""The suite of grids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..contracts import Grid, QuantizedWeight
from ..scheme import Scheme
from .suite import Suite, expect
from .tiny import random_weight

if TYPE_CHECKING:
    import torch

GROUP = 32


class GridSuite(Suite):
    """Codes and values belong together, fits can be stored, and gradients pass straight through inside the range."""

    kind = "grid"

    def schemes(self) -> Iterator[Scheme]:
        """Every width of the card, in groups and in rows."""
        for bits in self.card.bits:
            for group in (f"g{GROUP}", "-row"):
                yield Scheme.parse(f"w{bits}{group}-{self.card.name}")

    def grids(self) -> Iterator[Grid]:
        """The grid of every scheme."""
        kind = self._registry.load_class(self.card)
        yield from (kind(scheme) for scheme in self.schemes())

    def test_codes_come_back_from_their_values(self) -> None:
        """Every code's value has this code, so what is saved is what was trained."""
        import torch

        for grid in self.grids():
            _, scale, zero = fitted(grid)
            levels = grid.scheme.levels
            codes = torch.arange(levels, dtype=torch.uint8).expand(len(scale), levels).contiguous()
            values = grid.decode(codes, scale, zero)
            expect(values.isfinite().all(), f"{grid.scheme}: a value is not finite")
            expect(grid.quantize(values, scale, zero).equal(codes), f"{grid.scheme}: a code's value has another code")

    def test_codes_are_those_of_the_nearest_values(self) -> None:
        """No other value of the grid is closer to the weight."""
        import torch

        for grid in self.grids():
            weight, scale, zero = fitted(grid)
            codes = grid.quantize(weight, scale, zero)
            expect(codes.dtype == torch.uint8, f"{grid.scheme}: codes are {codes.dtype}, not torch.uint8")
            expect(codes.shape == weight.shape, f"{grid.scheme}: codes are {tuple(codes.shape)}")
            expect(int(codes.max()) <= grid.scheme.max_code, f"{grid.scheme}: codes up to {int(codes.max())}")
            error = (grid.decode(codes, scale, zero) - weight).abs()
            for code in range(grid.scheme.levels):
                other = (grid.decode(torch.full_like(codes, code), scale, zero) - weight).abs()
                near = bool((error <= other + 1e-5 * scale.abs()).all())
                expect(near, f"{grid.scheme}: the value of code {code} is closer to a weight than that of its own code")

    def test_a_fit_can_be_stored_and_is_worth_it(self) -> None:
        """Snapped, finite, and closer to the weights than zeros are; weights that count more are met better."""
        import torch

        for grid in self.grids():
            weight, scale, zero = fitted(grid)
            expect(scale.shape == zero.shape == (len(weight), 1), f"{grid.scheme}: scale is {tuple(scale.shape)}")
            expect(scale.isfinite().all() and (scale > 0).all(), f"{grid.scheme}: a scale is not finite and positive")
            expect(grid.snap(scale).equal(scale), f"{grid.scheme}: fit returns a scale that `snap` changes")
            expect(
                grid.snap_zero(zero.float()).equal(zero.float()),
                f"{grid.scheme}: fit returns a zero point that `snap_zero` changes",
            )
            if grid.whole_zeros:
                top = grid.scheme.max_code
                expect(
                    ((zero >= 0) & (zero <= top)).all(), f"{grid.scheme}: a zero point is off the range of the codes"
                )
            error = (grid.requantize(weight, scale, zero) - weight).square().sum()
            expect(error < weight.square().sum(), f"{grid.scheme}: zeros are closer to the weights than the fit")
            counts = torch.ones_like(weight)
            counts[:, : weight.shape[1] // 4] = 100.0
            uneven = grid.fit(weight, counts)
            costs = [
                ((grid.requantize(weight, *each) - weight).square() * counts).sum() for each in ((scale, zero), uneven)
            ]
            expect(costs[1] <= costs[0] * 1.001, f"{grid.scheme}: `importance` does not help the weights that count")

    def test_odd_weights_have_a_fit(self) -> None:
        """Zeros, a constant, huge and tiny values."""
        weight = random_weight()[:4, :GROUP].clone()
        weight[0], weight[1], weight[2, 5], weight[3] = 0.0, 0.3, 3e4, 1e-12
        for grid in self.grids():
            scale, zero = grid.fit(weight)
            values = grid.requantize(weight, scale, zero)
            expect(values.isfinite().all(), f"{grid.scheme}: a value is not finite")
            expect(values[0].abs().max() < 1e-3, f"{grid.scheme}: a group of zeros decodes to {float(values[0].max())}")

    def test_gradients_are_linear(self) -> None:
        """In the gradient on the weights: they may be summed over micro-batches first."""
        for grid in self.grids():
            weight, scale, zero = fitted(grid, reach=3.0)
            one, two = (random_weight(len(weight))[:, : weight.shape[1]] * factor for factor in (1.0, -0.3))
            both = grid.gradients(one + two.flip(0), weight, scale, zero)
            parts = zip(
                grid.gradients(one, weight, scale, zero), grid.gradients(two.flip(0), weight, scale, zero), strict=True
            )
            for whole, (first, second), what in zip(both, parts, ("weight", "scale", "zero point"), strict=True):
                close = (whole - first - second).abs().max() <= 1e-3 * (1 + whole.abs().max())
                expect(close, f"{grid.scheme}: the gradient of the {what} is not linear")

    def test_gradients_pass_straight_through_inside_the_range(self) -> None:
        """A weight on a value of the grid gets its own gradient, one far beyond the range none."""
        for grid in self.grids():
            weight, scale, zero = fitted(grid)
            grad = random_weight(len(weight))[:, : weight.shape[1]]
            inside = grid.requantize(weight, scale, zero)
            of_weight, of_scale, of_zero = grid.gradients(grad, inside, scale, zero)
            expect(of_weight.equal(grad), f"{grid.scheme}: a weight on the grid does not get its own gradient")
            expect(
                of_scale.shape == scale.shape, f"{grid.scheme}: the gradient of the scale is {tuple(of_scale.shape)}"
            )
            expect(of_zero.shape == zero.shape, f"{grid.scheme}: that of the zero point is {tuple(of_zero.shape)}")
            beyond = weight.sign() * 1e3 * scale * grid.scheme.levels
            expect(not grid.gradients(grad, beyond, scale, zero)[0].any(), f"{grid.scheme}: a weight beyond gets one")

    def test_the_scale_gets_the_slope_of_weights_beyond_the_range(self) -> None:
        """There the value is the outermost one, whatever the weight: finite differences know its slope exactly."""
        for grid in self.grids():
            weight, scale, zero = fitted(grid)
            scale, zero = scale.double(), zero.double()
            beyond = weight.sign().double() * 1e3 * scale * grid.scheme.levels
            grad, step = random_weight(len(weight))[:, : weight.shape[1]].double(), scale / 64
            codes = grid.quantize(beyond, scale, zero)
            slope = (grid.decode(codes, scale + step, zero) - grid.decode(codes, scale - step, zero)) / (2 * step)
            expected = (grad * slope).sum(1, keepdim=True)
            found = grid.gradients(grad, beyond, scale, zero)[1]
            close = (found - expected).abs().max() <= 1e-3 * (1 + expected.abs().max())
            expect(close, f"{grid.scheme}: the gradient of the scale is not the slope of the outermost values")

    def test_layers_can_be_saved(self) -> None:
        """A whole layer, its state, and back; equal schemes give equal grids."""
        for grid in self.grids():
            layer = grid.quantize_layer(random_weight(), *grid.fit_layer(random_weight()))
            again = QuantizedWeight.from_state(layer.contiguous().state(), layer.scheme)
            expect(again.equals(layer), f"{grid.scheme}: a layer is another one after saving")
            expect(type(grid)(grid.scheme) == grid, f"{grid.scheme}: two grids of one scheme are not equal")
            values = grid.decode_layer(layer)
            twice = grid.quantize_layer(values, layer.scale, layer.zero)
            expect(twice.equals(layer), f"{grid.scheme}: quantizing what a layer decodes to gives another one")


def fitted(grid: Grid, reach: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of weights, stretched by `reach` after the fit, and their scales and zero points."""
    weight = random_weight()
    weight = weight.reshape(-1, grid.scheme.group_size(weight.shape[1]))
    scale, zero = grid.fit(weight)
    return weight * reach, scale, zero
