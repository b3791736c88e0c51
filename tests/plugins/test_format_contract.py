"""Every format of packed weights at every scheme and at odd sizes, read back by decoders written here.

Each follows its format's definition value by value: a row of words is one number, lowest bits first. None shares code
with what wrote it; the packages of the formats are asked in test_exporters.py, test_gguf.py and tests/servers.
"""

from __future__ import annotations

import pytest
import torch

from rqat import Context, QuantizedWeight, Scheme
from rqat.contracts import ModelShape
from rqat.grids import grid_of
from rqat.registry import Registry

SCHEMES = [
    f"w{bits}{group}{sym}" for bits in (2, 3, 4, 8) for group in ("g32", "g64", "g128", "-row") for sym in ("", "-sym")
]
FORMATS = ("compressed-tensors", "gptq", "awq", "mlx", "rqat")
SHAPES = ((1, 128), (5, 96), (172, 128), (33, 77), (64, 128), (32, 384))


def stream(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Values of each row of words."""
    found = []
    for row in words.contiguous().view(torch.int32).numpy():
        number = int.from_bytes(row.tobytes(), "little")
        found.append([(number >> (bits * index)) & ((1 << bits) - 1) for index in range(count)])
    return torch.tensor(found)


def awq_stream(words: torch.Tensor, count: int) -> torch.Tensor:
    """Nibbles of each word, from the lowest, are its values 0, 2, 4, 6, 1, 3, 5, 7."""
    places = [(0, 4, 1, 5, 2, 6, 3, 7)[value % 8] + value // 8 * 8 for value in range(count)]
    return stream(words, 4, count)[:, places]


def spread(per_group: torch.Tensor, width: int) -> torch.Tensor:
    return per_group.repeat_interleave(width // per_group.shape[1], 1)


def gptq(tensors: dict[str, torch.Tensor], scheme: Scheme, out: int, width: int, version: int) -> torch.Tensor:
    codes = stream(tensors["qweight"].T, scheme.bits, width)
    zero = stream(tensors["qzeros"], scheme.bits, out).T + (1 if version == 1 else 0)
    group = tensors["g_idx"].long()
    return (codes - zero[:, group]) * tensors["scales"].T.float()[:, group]


def awq(tensors: dict[str, torch.Tensor], scheme: Scheme, out: int, width: int) -> torch.Tensor:
    codes, zero = awq_stream(tensors["qweight"], out).T, awq_stream(tensors["qzeros"], out).T
    return (codes - spread(zero, width)) * spread(tensors["scales"].T.float(), width)


def compressed_tensors(tensors: dict[str, torch.Tensor], scheme: Scheme, out: int, width: int) -> torch.Tensor:
    assert tensors["weight_shape"].tolist() == [out, width]
    codes, scale = stream(tensors["weight_packed"], scheme.bits, width), tensors["weight_scale"].float()
    zero = torch.full(scale.shape, 2 ** (scheme.bits - 1))
    if not scheme.symmetric:
        zero = stream(tensors["weight_zero_point"].T, scheme.bits, out).T
    return (codes - spread(zero, width)) * spread(scale, width)


def native(tensors: dict[str, torch.Tensor], scheme: Scheme, out: int, width: int) -> torch.Tensor:
    codes, scale = stream(tensors["codes"], scheme.bits, width), tensors["scale"].float()
    zero = tensors["zero"].expand(scale.shape) if scheme.symmetric else stream(tensors["zero"].T, scheme.bits, out).T
    return (codes - spread(zero.long(), width)) * spread(scale, width)


def mlx(tensors: dict[str, torch.Tensor], scheme: Scheme, out: int, width: int) -> torch.Tensor:
    codes = stream(tensors["weight"], scheme.bits, width)
    return codes * spread(tensors["scales"].float(), width) + spread(tensors["biases"].float(), width)


def weight_of(scheme: Scheme, out: int, width: int) -> QuantizedWeight:
    """Random codes with both ends of their range, and zero points from 0 to the largest."""
    generator = torch.Generator().manual_seed(out * width)
    groups = scheme.groups(width)
    codes = torch.randint(0, scheme.levels, (out, width), generator=generator, dtype=torch.uint8)
    codes[0, 0], codes[-1, -1] = 0, scheme.max_code
    zero = torch.randint(0, scheme.levels, (out, groups), generator=generator, dtype=torch.uint8)
    zero = torch.full_like(zero, scheme.middle) if scheme.symmetric else zero
    scale = grid_of(scheme).snap(torch.rand(out, groups, generator=generator) * 0.1 + 0.001)
    return QuantizedWeight(codes, scale, zero, scheme=scheme)


def refusals(card, options, scheme: Scheme, out: int, width: int) -> list[str]:
    shape = ModelShape("m", "qwen3", {"a": (out, width)}, width, 8, 1, True, None)
    return [problem.text for problem in options.check(Context(schemes={"a": scheme}, model=shape))]


@pytest.mark.parametrize("spelling", SCHEMES)
@pytest.mark.parametrize("format_name", FORMATS)
def test_what_is_packed_is_read_back_by_the_formats_definition(format_name: str, spelling: str) -> None:
    scheme, registry, tried = Scheme.parse(spelling), Registry.current(), 0
    card = registry.card("exporter", format_name)
    for out, width in SHAPES:
        if not scheme.divides(width):
            continue
        for version in (1, 2) if format_name == "gptq" else (0,):
            raw = {"checkpoint_format": "gptq" if version == 1 else "gptq_v2"} if version else {}
            options = registry.options(card, raw)
            if refusals(card, options, scheme, out, width):
                continue
            weight = weight_of(scheme, out, width)
            weight.zero.clamp_(min=1 if version == 1 else 0)
            made = registry.make(card, options).tensors("a", weight)
            tensors = {name.removeprefix("a."): tensor for name, tensor in made.items()}
            expected, name = grid_of(scheme).decode_layer(weight), f"{format_name} {version or ''} {out} x {width}"
            read = {"compressed-tensors": compressed_tensors, "rqat": native, "awq": awq, "mlx": mlx}.get(format_name)
            found = read(tensors, scheme, out, width) if read else gptq(tensors, scheme, out, width, version)
            tried += 1
            if format_name == "mlx" and scheme.bits > 3 and not scheme.symmetric:
                assert ((found - expected).abs() / spread(weight.scale, width)).max() < 1 / 8, name
            else:
                assert torch.equal(found.float(), expected), name
    assert tried or (format_name == "awq" and scheme.bits != 4), "a format that takes no size of this scheme"


@pytest.mark.parametrize(
    ("format_name", "spelling", "shape", "says"),
    [
        ("awq", "w3g64", (64, 64), "holds 4 bits"),
        ("awq", "w4g64", (12, 64), "multiples of 8"),
        ("mlx", "w4g16", (64, 64), "its groups are 32, 64 or 128"),
        ("mlx", "w4-row", (64, 48), "its groups are 32, 64 or 128"),
        ("gptq", "w4g64", (12, 64), "multiples of 32"),
    ],
)
def test_what_a_format_does_not_hold_is_told_before_any_work(
    format_name: str, spelling: str, shape: tuple[int, int], says: str
) -> None:
    registry = Registry.current()
    card = registry.card("exporter", format_name)
    (line,) = refusals(card, registry.options(card, {}), Scheme.parse(spelling), *shape)
    assert says in line


def test_awq_holds_one_scheme_and_no_head() -> None:
    registry = Registry.current()
    options = registry.options(registry.card("exporter", "awq"), {})
    both = {"a": Scheme.parse("w4g32"), "lm_head": Scheme.parse("w4g64")}
    texts = [problem.text for problem in options.check(Context(schemes=both))]
    assert any("one scheme for all layers" in text for text in texts)
    assert any("no quantized head" in text for text in texts)
