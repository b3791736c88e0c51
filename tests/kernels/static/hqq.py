"""Gates of `hqq`: every weight stays in registers.

An iteration is 81 instructions per weight: two roundings, two logarithms and three powers with their paths for
subnormal numbers, and three sums over the group. Twenty of them take a GPU as long as moving some 200 bytes: the four
of a weight do not count.
"""

from __future__ import annotations

from sass import Case

CASES = [
    Case(
        name=f"hqq-{name}",
        kernel="rqat_kernels.hqq.kernel:_fit_hqq",
        signature={
            "weight": weight,
            "scale": "*fp32",
            "zero": "*fp32",
            "out": "*fp32",
            "R": "i32",
            "lp_norm": "fp32",
            "iterations": "i32",
        },
        constexprs={"MAX_CODE": 7, "WHOLE": True, "GROUP": group, "ROWS": 2048 // columns, "COLUMNS": columns},
        elements=2048,
        per_element={90: 84},
        registers=128,
    )
    for name, weight, group, columns in (("g128", "*fp32", 128, 128), ("odd", "*bf16", 96, 128))
]
