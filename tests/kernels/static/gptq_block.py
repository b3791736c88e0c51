"""Machine code of GPTQ's block of columns."""

from sass import Case

POINTERS = {
    "w": "*fp32",
    "u": "*fp32",
    "s": "*fp32",
    "z": "*fp32",
    "group_of": "*i32",
    "codes": "*u8",
    "errors": "*fp32",
}
SIZES = dict.fromkeys(("out_features", "start", "columns", "stride_u", "max_code"), "i32")


def _case(rows: int, warps: int) -> Case:
    return Case(
        f"gptq_block-{rows}x{warps}",
        "rqat_kernels.gptq_block.kernel:block_kernel",
        POINTERS | SIZES,
        {"BLOCK": 128, "ROWS": rows},
        unaligned=("max_code",),
        warps=warps,
        elements=rows,  # of one column
        per_element={80: 1400, 90: 1400},
    )


CASES = [_case(8, 1), _case(16, 2)]
