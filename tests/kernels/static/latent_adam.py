"""Gates of `latent_adam`: at 28 bytes per weight, a GPU of 4.3 TB/s can issue 217 instructions per weight meanwhile."""

from __future__ import annotations

from sass import Case

STATE = [f"{of}{moment}" for of in ("latent", "ratio", "zero") for moment in ("", "_first", "_second")]
NUMBERS = [
    "factor", "keep", "decay", "size", "size_scale", "size_zero", "beta1", "rest1", "beta2", "rest2", "widen", "eps",
]  # fmt: skip


def case(name: str, group: int, rows: int, columns: int, warps: int, **more: float) -> Case:
    import triton.language as tl

    return Case(
        name=f"latent_adam-{name}",
        kernel="rqat_kernels.latent_adam.kernel:_latent_adam",
        signature={"table": "*i64"} | dict.fromkeys([*STATE, "origin"], "*fp32") | dict.fromkeys(NUMBERS, "fp32"),
        constexprs={
            "MAX_CODE": 3, "SCALES": True, "ZEROS": True, "GRAD": tl.bfloat16, "WEIGHT": tl.bfloat16,
            "GROUP": group, "ROWS": rows, "COLUMNS": columns,
        },
        warps=warps,
        elements=rows * columns,
        per_element={90: 110},
        **more,
    )  # fmt: skip


CASES = [
    case("g128", 128, 16, 128, 4, wide=0.3, registers=168),
    # 32 weights per thread and all of their state: a handful of numbers may go through local memory.
    case("row", 12288, 1, 16384, 16, wide=0.3, spills=8),
]
