"""Machine code of the kernel that makes dense matrices of planes; it is bound by the bytes it writes."""

from __future__ import annotations

from sass import Case


def dequantize(bits: int) -> Case:
    """Tiled parameters in bfloat16, a bfloat16 matrix."""
    return Case(
        name=f"packing-dequantize-b{bits}",
        kernel="rqat_kernels.packing.kernel:_dequantize",
        signature={
            "words_ptr": "*i16",
            "extra_ptr": "*i16",
            "params_ptr": "*i32",
            "dense_ptr": "*bf16",
            "rows": "i32",
            "width": "i32",
            "slabs": "i32",
            "group": "i32",
        },
        constexprs={"BITS": bits, "TILED": True, "FULL": False, "HALF": False, "ROWS": 32},
        unaligned=("slabs",),
        elements=32 * 512,
        capabilities=(90,),
        # 2.3 bytes per weight at 4.3 TB/s are 18 instructions on an H200; half of them leaves memory the only limit.
        per_element={90: 9.0},
    )


CASES = [dequantize(2), dequantize(3), dequantize(4)]
