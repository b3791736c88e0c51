"""A grid: levels at odd halves of the scale, so that 2 bits hold -1.5, -0.5, 0.5 and 1.5 times it, and no zero."""

import rqat


class Halves(rqat.Grid):
    whole_zeros = False

    def fit(self, weight, importance=None):
        scale = self.snap(weight.abs().amax(dim=1, keepdim=True) / self._middle)
        return scale, scale.new_zeros(scale.shape)

    def quantize(self, weight, scale, zero):
        return (weight / scale + self._middle).round().clamp(0, self.scheme.max_code).byte()

    def decode(self, codes, scale, zero):
        return (codes.to(scale.dtype) - self._middle) * scale

    def gradients(self, grad, latent, scale, zero):
        import torch

        inside = (latent / scale).abs() <= self._middle
        levels = self.decode(self.quantize(latent, scale, zero), torch.ones_like(scale), zero)
        of_scale = grad * torch.where(inside, levels - latent / scale, levels)
        return grad * inside, of_scale.sum(dim=1, keepdim=True), torch.zeros_like(zero)

    @property
    def _middle(self) -> float:
        return self.scheme.max_code / 2


@rqat.hookimpl
def register_grids(register: rqat.RegisterGrid) -> None:
    register("halves", load=":Halves", bits=(2, 3, 4), summary="odd halves of the scale, and no zero")
