"""Gates of `fake_quant`: a GPU of 4.3 TB/s issues 31 instructions per number of 4 bytes while it moves them.

Counted is all of the kernel, with the division's path for subnormal numbers, which is never taken.
"""

from __future__ import annotations

from sass import Case


def case(name: str, group: int, rows: int, columns: int, warps: int, *, symmetric: bool = False) -> Case:
    return Case(
        name=f"fake_quant-{name}",
        kernel="rqat_kernels.fake_quant.kernel:_activations",
        signature={"x": "*bf16", "out": "*bf16", "R": "i32"},
        constexprs={
            "MAX_CODE": 15, "SYMMETRIC": symmetric, "GROUP": group, "ROWS": rows, "COLUMNS": columns,
        },
        warps=warps,
        elements=rows * columns,
        per_element={90: 30},
        wide=0.9,
        registers=128,
    )  # fmt: skip


CASES = [case("token", 4096, 1, 4096, 8), case("group", 128, 16, 128, 4, symmetric=True)]
