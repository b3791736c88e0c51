"""Gates of `grid`. A GPU of 4.3 TB/s issues 46 instructions per weight of 6 bytes in the time it takes to move it.

Counted is all of the kernel, addresses and the division's path for subnormal numbers, which is never taken, included.
"""

from __future__ import annotations

from sass import Case

MODULE = "rqat_kernels.grid.kernel"
TILE = {"GROUP": 128, "ROWS": 16, "COLUMNS": 128}


def quantize(name: str, weight: str, out: str, *, values: bool) -> Case:
    return Case(
        name=f"grid-{name}",
        kernel=f"{MODULE}:_quantize",
        signature={"weight": weight, "scale": "*fp32", "zero": "*fp32", "out": out, "R": "i32"},
        constexprs={"MAX_CODE": 3, "VALUES": values, **TILE},
        elements=2048,
        per_element={90: 28},
        wide=0.3,
        registers=128,
    )


CASES = [
    quantize("codes", "*fp32", "*u8", values=False),
    quantize("values-fp32", "*fp32", "*bf16", values=True),
    quantize("values-bf16", "*bf16", "*bf16", values=True),
    Case(
        name="grid-dequantize",
        kernel=f"{MODULE}:_dequantize",
        signature={"codes": "*u8", "scale": "*fp32", "zero": "*fp32", "out": "*bf16", "R": "i32"},
        constexprs=TILE,
        elements=2048,
        per_element={90: 28},
        registers=128,
    ),
    Case(
        name="grid-clip",
        kernel="rqat_kernels.grid.clip:_fit_clip",
        signature={
            "weight": "*fp32",
            "importance": "*fp32",
            "shrinks": "*fp32",
            "scale": "*fp32",
            "zero": "*fp32",
            "R": "i32",
            "groups": "i32",
            "tries": "i32",
        },
        constexprs={"MAX_CODE": 3, "SYMMETRIC": False, "WEIGHTED": True, **TILE},
        elements=2048,
        options={"enable_fp_fusion": False},
        per_element={90: 36},  # per try: the loop is what counts, and it is run twenty times
        registers=128,
    ),
]
