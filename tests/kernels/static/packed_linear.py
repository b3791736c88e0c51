"""Machine code of the linear layers on packed weights. Gates: issue slots per weight.

At 4.3 TB/s an H200 issues 2.19 instructions per weight of 2 bits (scale and zero point included) in the time in which
the weight arrives, 3.16 of 3 bits and 4.13 of 4: above that, memory waits for the processor.
"""

from __future__ import annotations

from sass import Case

BUDGET = {2: 2.19, 3: 3.16, 4: 4.13}

SIGNATURE = {
    "x_ptr": "*bf16",
    "words_ptr": "*i16",
    "extra_ptr": "*i16",
    "params_ptr": "*i32",
    "bias_ptr": "*bf16",
    "y_ptr": "*bf16",
    "M": "i32",
    "N": "i32",
    "K": "i32",
    "slabs": "i32",
    "turns": "i32",
}


def case(variant: str, bits: int, rows: int, block: int, warps: int, stages: int = 3, **changes) -> Case:
    """One launch; `changes` replace constexprs."""
    constexprs = {
        "BITS": bits, "FULL": False, "HALF": False, "HAS_BIAS": False, "WHOLE": True, "ROWS": rows, "BLOCK": block,
        "WARPS": warps, "STAGES": stages, "PARTIAL": False, "PDL": False, "USE_ASM": True,
    }  # fmt: skip
    marks = "".join(f"-{name.lower()}" for name in changes)
    return Case(
        name=f"packed_linear-{variant}-b{bits}-m{rows}-n{block}-w{warps}-s{stages}{marks}",
        kernel=f"rqat_kernels.packed_linear.kernel:_{variant}",
        signature=SIGNATURE,
        constexprs=constexprs | changes,
        unaligned=("M", "slabs", "turns"),
        # Launches that overlap are Hopper's.
        capabilities=(90,) if "PDL" in changes else (80, 90),
        warps=warps,
        stages=stages,
        elements=(warps if variant == "skinny" else 1) * block * 512,
        matrix="any",
        per_element={90: BUDGET[bits]},
    )


CASES = [
    case("skinny", 2, 8, 32, 8, 2),
    case("skinny", 3, 8, 32, 4),
    case("skinny", 4, 8, 16, 4),
    case("skinny", 2, 16, 32, 4),
    case("tall", 2, 8, 64, 4),
    case("skinny", 2, 8, 16, 4, PDL=True),
]
