"""Round to nearest: every weight goes to the closest point of its grid. The shortest real plugin; read this one first.

A plugin is a module with functions marked `@rqat.hookimpl`. `register_quantizers` below is its card: a name, the
options a recipe may set, and where the class is. Reading a card must be quick, so torch is imported in the method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import rqat

if TYPE_CHECKING:
    import torch


class Options(rqat.Options):
    """Options of `rtn`.

    Attributes:
        clip: `minmax` spans every weight of a group; `mse` narrows the span to the one of least squared rounding error,
            as the fit of every other grid does.
    """

    clip: Literal["minmax", "mse"] = "minmax"


class RoundToNearest(rqat.Quantizer):
    """Rounds each weight by itself; looks at no data."""

    options: Options

    def quantize_linear(
        self, weight: torch.Tensor, stats: rqat.LinearStats, scheme: rqat.Scheme
    ) -> rqat.QuantizedWeight:
        """See `rqat.Quantizer`."""
        from rqat_kernels.dispatch import one_thread
        from rqat_kernels.grid import fit_minmax

        grid = rqat.grid_of(scheme)
        if grid.uniform and self.options.clip == "minmax":
            groups = scheme.groups(weight.shape[1])
            with one_thread():  # each step is over in microseconds
                fitted = fit_minmax(weight, groups, scheme.max_code, symmetric=scheme.symmetric)
                return grid.quantize_layer(weight, *fitted)
        return grid.quantize_layer(weight, *grid.fit_layer(weight))


@rqat.hookimpl
def register_quantizers(register: rqat.RegisterQuantizer) -> None:
    """The card of `rtn`."""
    register(
        "rtn",
        options=Options,
        load=":RoundToNearest",
        grids=None,
        summary="round every weight to the nearest code; needs no data",
    )
