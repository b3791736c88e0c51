"""The kernels of a decoding step, as a Qwen3 of width 1024 with 16 query and 8 key heads of 128 launches them."""

from __future__ import annotations

from sass import Case

SMALL = "rqat_kernels.decode.kernel"
ENDS = "rqat_kernels.decode.ends"
ATTENTION = "rqat_kernels.decode.attention"

CASES = [
    Case(
        "decode-add_rms_norm",
        f"{SMALL}:add_rms_norm_kernel",
        {
            "residual": "*bf16",
            "delta": "*bf16",
            "weight": "*bf16",
            "total": "*bf16",
            "normed": "*bf16",
            "width": "i32",
            "eps": "fp32",
        },
        {"HAS_DELTA": True, "WIDTH": 1024, "PDL": False},
        wide=0.6,  # three loads of the row; the exchange between warps goes through shared memory
    ),
    *(
        Case(
            f"decode-attend-{splits}{'-early' if early else ''}",
            f"{ATTENTION}:attend_kernel",
            {
                **dict.fromkeys(("qkv", "q_weight", "k_weight", "cos_at", "sin_at", "keys", "values"), "*bf16"),
                "slots": "*i64",
                "positions": "*i64",
                "out": "*bf16",
                "parts": "*bf16" if splits == 1 else "*fp32",
                "sums": "*bf16" if splits == 1 else "*fp32",
                "seen": "*bf16" if splits == 1 else "*i32",
                **dict.fromkeys(("heads", "key_heads", "capacity", "width"), "i32"),
                "scale": "fp32",
                "eps": "fp32",
                "window": "i32",
            },
            {
                "GROUP": 2,
                "HEADS": 2,
                "ROWS": 16,
                "TILE": 64,
                "WIDTH": 128,
                "SPLITS": splits,
                "HAS_NORM": True,
                "PDL": early,
            },
            capabilities=(90,) if early else (80, 90),
            unaligned=("key_heads", "window"),
            matrix="any",
            wide=0.8 if splits == 1 else 0.4,  # all of the cache; sums of parts are single numbers
            elements=64 * 128,
            # Per element of keys and of values: two matrix products padded to 16 rows, and the addresses of the loads.
            per_element={80: 7, 90: 7},
        )
        for splits, early in ((1, False), (16, False), (16, True))
    ),
    Case(
        "decode-silu_mul",
        f"{SMALL}:silu_mul_kernel",
        {"gate_up": "*bf16", "product": "*bf16", "width": "i32"},
        {"BLOCK": 1024, "PDL": False},
        wide=1.0,
    ),
    Case(
        "decode-look_up",
        f"{ENDS}:look_up_kernel",
        {
            **dict.fromkeys(("tokens", "slots", "positions"), "*i64"),
            **dict.fromkeys(("embeddings", "cos", "sin", "x", "cos_out", "sin_out"), "*bf16"),
            **dict.fromkeys(("places", "width", "angles"), "i32"),
        },
        {"WIDTH": 1024, "ANGLES": 128, "PDL": False},
        wide=0.15,  # three numbers lead to the rows, and an angle per thread is what those of the tables hold
    ),
    *(
        Case(
            f"decode-append-{'sample' if sample else 'greedy'}",
            f"{ENDS}:append_kernel",
            {
                "logits": "*bf16",
                **dict.fromkeys(("temperature", "floor"), "*fp32"),
                **dict.fromkeys(("seeds", "tokens"), "*i64"),
                "logprobs": "*fp32",
                "told": "*i32",
                **dict.fromkeys(("slots", "positions", "live", "limits", "stops"), "*i64"),
                "best": "*fp32",
                "where": "*i32",
                **dict.fromkeys(("sums", "kept"), "*fp32"),
                "seen": "*i32",
                **dict.fromkeys(("vocabulary", "places", "pieces", "spare", "ends"), "i32"),
            },
            {
                "PIECE": 4096,
                "PIECES": 64,
                "ENDS": 2,
                "SAMPLE": sample,
                "FLOOR": False,
                "LIKELY": sample,
                "PDL": True,
            },
            capabilities=(90,),
            unaligned=("pieces", "spare", "ends"),
            wide=0.2,  # what pieces found, and what is known of a row, are single numbers
        )
        for sample in (False, True)
    ),
]
