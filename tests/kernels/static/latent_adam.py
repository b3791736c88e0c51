"""Gates of `latent_adam`: at 28 bytes per weight, a GPU of 4.3 TB/s can issue 217 instructions per weight meanwhile."""

from __future__ import annotations

from sass import Case

ADDRESSES = {"table": "*i64", "grads": "*i64", "refused": "*i32", "first_layer": "i32", "rows": "i32"}
NUMBERS = [
    "keep", "decay", "size", "size_scale", "size_zero", "beta1", "rest1", "beta2", "rest2", "widen", "eps",
]  # fmt: skip


def tl_bfloat16() -> object:
    """Triton is imported late: a file of cases is read without it, too."""
    import triton.language as tl

    return tl.bfloat16


def case(name: str, group: int, rows: int, columns: int, warps: int, in_codes: bool = False, **more: float) -> Case:
    import triton.language as tl

    return Case(
        name=f"latent_adam-{name}",
        kernel="rqat_kernels.latent_adam.kernel:_latent_adam",
        signature=ADDRESSES | dict.fromkeys(NUMBERS, "fp32"),
        constexprs={
            "MAX_CODE": 3, "SCALES": True, "ZEROS": True, "GRAD": tl.bfloat16, "WEIGHT": tl.bfloat16,
            "IN_CODES": in_codes, "GROUP": group, "ROWS": rows, "COLUMNS": columns,
        },
        unaligned=("first_layer", "rows"),
        warps=warps,
        elements=rows * columns,
        per_element={90: 110},
        **more,
    )  # fmt: skip


CASES = [
    case("g128", 128, 8, 128, 4, wide=0.25, registers=96),
    case("codes", 128, 8, 128, 4, in_codes=True, wide=0.25, registers=96),
    # 32 weights per thread and all of their state: a handful of numbers may go through local memory.
    Case(
        name="latent_adam-search",
        kernel="rqat_kernels.latent_adam.kernel:_look_for_infinity",
        signature={"table": "*i64", "refused": "*i32"},
        constexprs={"TYPE": tl_bfloat16(), "PROGRAMS": 64, "BLOCK": 2048},
        elements=2048,
        per_element={90: 20},
        wide=0.1,
        registers=64,
    ),
    case("row", 12288, 1, 16384, 16, wide=0.3, spills=8),
]
