"""Row kernels of topk_kl as a bfloat16 step with k = 64 launches them; the loop is over tiles of one row of logits."""

from __future__ import annotations

from sass import Case

COMMON = {"SPLITS": 8, "LANES": 512, "FAST": True}
TAIL = {
    "student": "*bf16", "kept": "*fp32", "logp": "*bf16", "partial": "*fp32", "inverse": "*fp32", "stride": "i32",
    "tiles": "i32", "tokens": "i32", "k": "i32", "c": "fp32", "tau": "fp32",
}  # fmt: skip
STATISTICS = {
    "student": "*bf16", "teacher": "*bf16", "labels": "*fp32", "partial": "*fp32", "student_stride": "i32",
    "teacher_stride": "i32", "tiles": "i32", "tokens": "i32", "c": "fp32",
}  # fmt: skip

CASES = [
    Case(
        name="topk_kl-tail",
        kernel="rqat_kernels.topk_kl.kernel:tail",
        signature=TAIL,
        constexprs=COMMON | {"BLOCK": 64},
        unaligned=("tiles", "tokens", "k"),
        warps=16,
        elements=4096,
        per_element={80: 7, 90: 7},
        registers=48,
    ),
    Case(
        name="topk_kl-statistics",
        kernel="rqat_kernels.linear_kl.rows:statistics",
        signature=STATISTICS,
        constexprs=COMMON | {"KIND": 0, "LABELS": False, "PLAIN": False},
        unaligned=("tiles", "tokens"),
        warps=16,
        elements=4096,
        per_element={80: 8, 90: 8},
        wide=1.0,
        registers=40,
    ),
]
