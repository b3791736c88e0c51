"""Gates of `latent_step`. A GPU of 4.3 TB/s issues 77 instructions per weight of 10 bytes while it moves them.

Counted is all of the kernel: addresses, the sums' last steps and a path for subnormal numbers that is never taken too.
"""

from __future__ import annotations

from sass import Case

CASES = [
    Case(
        name=f"latent_step-{grad}-{weight}",
        kernel="rqat_kernels.latent_step.kernel:_latent_step",
        signature={
            "grad": f"*{grad}", "weight": f"*{weight}", "scale": "*fp32", "zero": "*fp32", "gw": f"*{weight}",
            "gs": "*fp32", "gz": "*fp32", "R": "i32",
        },
        constexprs={"MAX_CODE": 3, "GROUP": 128, "ROWS": 16, "COLUMNS": 128},
        elements=2048,
        per_element={90: 42},
        wide=0.3,
        registers=128,
    )
    for grad, weight in (("bf16", "fp32"), ("bf16", "bf16"))
]  # fmt: skip
