"""Machine code of the linear layers on packed weights. Gates: issue slots per weight.

At 4.3 TB/s an H200 issues 2.19 instructions per weight of 2 bits (scale and zero point included) in the time in which
the weight arrives, 3.16 of 3 bits and 4.13 of 4: above that, memory waits for the processor.
"""

from __future__ import annotations

from sass import Case

BUDGET = {2: 2.19, 3: 3.16, 4: 4.13}
LATER = {2: 5.2, 3: 6.6, 4: 5.2}
"""Of "tiled", whose tensor cores take 8 clocks per weight and 128 rows, in which four schedulers issue 32."""

SIGNATURE = {
    "x_ptr": "*bf16",
    "words_ptr": "*i16",
    "extra_ptr": "*i16",
    "params_ptr": "*i32",
    "bias_ptr": "*bf16",
    "y_ptr": "*bf16",
    "partial_ptr": "*fp32",
    "seen_ptr": "*i32",
    "M": "i32",
    "N": "i32",
    "K": "i32",
    "slabs": "i32",
    "turns": "i32",
    "splits": "i32",
    "ahead": "i32",
}


def case(
    variant: str,
    bits: int,
    rows: int,
    block: int,
    across: int,
    warps: int,
    stages: int = 3,
    capabilities=(80, 90),
    **changes,
) -> Case:
    """One launch; `changes` replace constexprs."""
    tiles = variant == "tiled"
    constexprs = {
        "BITS": bits, "FULL": False, "HALF": False, "HAS_BIAS": False, "WHOLE": True, "ROWS": rows, "BLOCK": block,
        "TILES" if tiles else "ACROSS": across, "WARPS": warps, "STAGES": stages, "PARTIAL": False,
        "PDL": False, "USE_ASM": True, "GATED": False,
    }  # fmt: skip
    marks = "".join(f"-{name.lower()}" for name in changes)
    return Case(
        name=f"packed_linear-{variant}-b{bits}-m{rows}-n{block}-a{across}-w{warps}-s{stages}{marks}",
        kernel=f"rqat_kernels.packed_linear.{variant if variant in ('wide', 'tiled') else 'kernel'}:_{variant}",
        signature=SIGNATURE | ({"starts_ptr": "*i32"} if tiles else {}),
        constexprs=constexprs | changes,
        unaligned=("M", "slabs", "turns", "splits", "ahead"),
        # Launches that overlap are Hopper's.
        capabilities=(90,) if "PDL" in changes else capabilities,
        warps=warps,
        stages=stages,
        elements=across * block * (128 if tiles else 512),
        matrix="any",
        # Scales and zero points come 4 bytes at a time; rows of 3-bit planes are cut in halves of 64 bytes.
        wide=0.1 if bits == 3 else 0.3,
        # From 17 rows on, tensor cores are the limit.
        per_element={90: LATER[bits] if tiles else BUDGET[bits] if rows <= 16 else 3.9},
    )


CASES = [
    case("skinny", 2, 8, 32, 8, 8, 2),
    case("skinny", 3, 8, 32, 4, 4),
    case("skinny", 4, 8, 16, 4, 4),
    case("skinny", 2, 16, 64, 1, 4),
    case("skinny", 3, 16, 64, 1, 4),
    case("skinny", 4, 16, 128, 1, 4),
    case("skinny", 2, 8, 16, 4, 4, PDL=True, PARTIAL=True),
    case("skinny", 2, 8, 64, 2, 4, PDL=True, GATED=True),
    case("stream", 2, 8, 64, 2, 4),
    case("wide", 2, 64, 128, 1, 8, 2, capabilities=(90,)),
    case("tiled", 2, 64, 64, 1, 4, 3, capabilities=(90,)),
    case("tiled", 3, 128, 64, 1, 4, 2, capabilities=(90,)),
    case("tiled", 4, 32, 64, 2, 4, 3, capabilities=(90,), PARTIAL=True),
]
