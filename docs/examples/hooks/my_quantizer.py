"""A quantizer: rounds to nearest, on a grid fitted where inputs are large."""

import rqat


class Options(rqat.Options):
    """Options of `my-rtn`.

    Attributes:
        power: how much a feature's mean absolute input counts; 0 is plain rounding.
    """

    power: float = 1.0

    def check(self, context: rqat.Context):
        """Told by `rqat plan`, before any work."""
        if any(scheme.bits == 8 for scheme in context.schemes.values()):
            yield rqat.Problem("at 8 bits 'my-rtn' gains nothing over 'rtn'", "Use rtn.", "method", level="note")


class MyRtn(rqat.Quantizer):
    options: Options
    needs = frozenset({"absmean"})

    def quantize_linear(self, weight, stats, scheme):
        from rqat_kernels.grid import fit_clip, quantize

        importance = stats.absmean**self.options.power  # (I,): what an error in a feature costs
        groups = scheme.groups(weight.shape[1])
        scale, zero = fit_clip(weight, groups, scheme.max_code, symmetric=scheme.symmetric, importance=importance)
        return rqat.QuantizedWeight(quantize(weight, scale, zero, scheme.max_code), scale, zero.byte())


@rqat.hookimpl
def register_quantizers(register: rqat.RegisterQuantizer) -> None:
    register(
        "my-rtn", options=Options, load=":MyRtn", needs=("absmean",), summary="round to nearest, weighted by the inputs"
    )
