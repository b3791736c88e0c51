"""Weights as kernels read them: codes in bit planes, `rq2`, `rq3` and `rq4`, with scale and zero point side by side.

The input features are cut into slabs of 512, the last one filled up with code 0. A slab of a row is, for each width:

    rq2   64 words of 16 bits; code `k = 64 p + c` of the slab is bits `2p, 2p + 1` of word `c`, for planes p = 0 ... 7
    rq3   the two low bits as in rq2, and 32 words more for the high bits: that of `k = 64 p + 32 h + c` is bit
          `8 h + EXTRA_BIT[p]` of word `c`, for halves h = 0, 1
    rq4   128 words of 16 bits; code `k = 128 p + c` is bits `4p ... 4p + 3` of word `c`, for planes p = 0 ... 3

So words hold `bits` bits per weight exactly; a field of neighbouring words belongs to neighbouring features; and a
plane lies in one group of 128. The order of the high bits is the one in which a shift aligns two of them with their
low bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

SLAB = 512
"""Input features in a slab."""

TILE = 128
"""Input features that share a scale and a zero point in the arrays that kernels read."""

WIDTHS = (2, 3, 4)

EXTRA_BIT = (2, 3, 6, 7, 1, 0, 5, 4)
"""Where the high bit of a 3-bit code lies in its byte, by plane."""

PARAMETER_TYPES = (torch.bfloat16, torch.float16, torch.float32)
"""Types of scale and zero point, in the order in which they are tried; the first that holds all of them is taken."""


@dataclass(frozen=True)
class PackedWeight:
    """A quantized weight `w_hat[o, k] = (q[o, k] - z[o, k // g]) * s[o, k // g]` in planes.

    Attributes:
        out_features, in_features: O and I of the weight.
        bits: 2, 3 or 4.
        group: input features g that share a scale; I for one scale per row.
        words: int16 `(O, P * b / 16)`, P being I rounded up to a multiple of 512 and b = 2 for three bits.
        extra: int16 `(O, P / 16)`, the high bits of three; None otherwise.
        params: `(P / 128, O, 2)`, scale and zero point; `(G, O, 2)` when `tiled` is false. bfloat16, unless that would
            change a value.
    """

    out_features: int
    in_features: int
    bits: int
    group: int
    words: Tensor
    extra: Tensor | None
    params: Tensor

    @classmethod
    def from_codes(
        cls, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group: int | None = None
    ) -> PackedWeight:
        """Packs codes; nothing is rounded.

        Args:
            codes: `(O, I)` uint8, below `2**bits`.
            scale: `(O, G)`.
            zero: `(O, G)`, any type; None is `2**(bits - 1)` everywhere.
            group: input features per scale; `I / G` by default.

        Raises:
            ValueError: another number of bits than 2, 3 or 4, or shapes that do not belong together.
        """
        if bits not in WIDTHS:
            raise ValueError(f"bits={bits} has no planes; known: 2, 3, 4")
        out, width = codes.shape
        groups = scale.shape[-1]
        if group is None:
            if groups == 0 or width % groups:
                raise ValueError(f"{groups} groups do not divide {width} input features; say group=")
            group = width // groups
        group = min(group, width) if width else group
        if tuple(scale.shape) != (out, -(-width // group)) or (zero is not None and zero.shape != scale.shape):
            shapes = [tuple(codes.shape), tuple(scale.shape), None if zero is None else tuple(zero.shape)]
            raise ValueError(f"codes, scale and zero of shapes {shapes} do not fit groups of {group}")
        low = (codes & 3) if bits == 3 else codes
        words = _planes(low, 4 if bits == 4 else 2)
        extra = _high_bits(codes >> 2) if bits == 3 else None
        params = _exact(scale, torch.full_like(scale, 2 ** (bits - 1)) if zero is None else zero)
        if _is_tiled(group, width):
            tiles = torch.arange(words_per_row(width, 2) * 8 // TILE, device=codes.device) * TILE // group
            params = params[tiles.clamp(max=groups - 1)]
        return cls(out, width, bits, group, words, extra, params.contiguous())

    @property
    def tiled(self) -> bool:
        """Whether a 128th of the features has one scale: groups that 128 divides, and whole rows."""
        return _is_tiled(self.group, self.in_features)

    @property
    def padded(self) -> int:
        """P: input features with the filling of the last slab."""
        return -(-self.in_features // SLAB) * SLAB

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(
            array.numel() * array.element_size() for array in (self.words, self.extra, self.params) if array is not None
        )

    @property
    def device(self) -> torch.device:
        return self.words.device

    @property
    def scale(self) -> Tensor:
        """`(O, G)` float32."""
        return self._parameter(0)

    @property
    def zero(self) -> Tensor:
        """`(O, G)` float32."""
        return self._parameter(1)

    def codes(self) -> Tensor:
        """`(O, I)` uint8."""
        codes = _unplanes(self.words, 4 if self.bits == 4 else 2)
        if self.extra is not None:
            codes |= _unpack_high_bits(self.extra) << 2
        return codes[:, : self.in_features].contiguous()

    def to(self, device: torch.device | str) -> PackedWeight:
        """The same weight on another device."""
        extra = None if self.extra is None else self.extra.to(device)
        return replace(self, words=self.words.to(device), extra=extra, params=self.params.to(device))

    def clone(self) -> PackedWeight:
        """The same weight in memory of its own."""
        extra = None if self.extra is None else self.extra.clone()
        return replace(self, words=self.words.clone(), extra=extra, params=self.params.clone())

    def _parameter(self, which: int) -> Tensor:
        count = -(-self.in_features // self.group) if self.in_features else 0
        groups = torch.arange(count, device=self.device)
        rows = groups * self.group // TILE if self.tiled else groups
        return self.params[rows, :, which].T.float().contiguous()


def words_per_row(width: int, bits: int) -> int:
    """16-bit words of a row of `width` codes of 2 or 4 bits, slabs filled up."""
    return -(-width // SLAB) * SLAB * bits // 16


def _is_tiled(group: int, width: int) -> bool:
    return group % TILE == 0 or group >= width


def _exact(scale: Tensor, zero: Tensor) -> Tensor:
    """`(G, O, 2)` of the first type that holds every value."""
    both = torch.stack((scale.T.double(), zero.T.double()), -1)
    for dtype in PARAMETER_TYPES:
        params = both.to(dtype)
        if torch.equal(params.double(), both):
            return params
    return both.float()


def _planes(codes: Tensor, bits: int) -> Tensor:
    """int16 words `(O, P * bits / 16)` of codes `(O, I)` of 2 or 4 bits."""
    planes = 16 // bits
    slabs = pad(codes, (0, -codes.shape[1] % SLAB)).view(codes.shape[0], -1, planes, SLAB // planes)
    words = torch.zeros_like(slabs[:, :, 0], dtype=torch.int16)
    for plane in range(planes):
        words |= slabs[:, :, plane].to(torch.int16) << (bits * plane)
    return words.flatten(1).contiguous()


def _unplanes(words: Tensor, bits: int) -> Tensor:
    planes = 16 // bits
    slabs = words.view(words.shape[0], -1, SLAB // planes)
    fields = [((slabs >> (bits * plane)) & ((1 << bits) - 1)).to(torch.uint8) for plane in range(planes)]
    return torch.stack(fields, 2).flatten(1)


def _high_bits(bits: Tensor) -> Tensor:
    """int16 words `(O, P / 16)` of high bits `(O, I)`."""
    slabs = pad(bits, (0, -bits.shape[1] % SLAB)).view(bits.shape[0], -1, 8, 2, 32)
    words = torch.zeros_like(slabs[:, :, 0, 0], dtype=torch.int16)
    for plane, place in enumerate(EXTRA_BIT):
        for half in range(2):
            words |= slabs[:, :, plane, half].to(torch.int16) << (place + 8 * half)
    return words.flatten(1).contiguous()


def _unpack_high_bits(words: Tensor) -> Tensor:
    slabs = words.view(words.shape[0], -1, 32)
    fields = [((slabs >> (place + 8 * half)) & 1).to(torch.uint8) for place in EXTRA_BIT for half in range(2)]
    return torch.stack(fields, 2).flatten(1)
