"""What a case works with: the device, its ceilings, random data, comparisons and errors."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import deterministic

from .table import Row
from .timing import Contender, Timing, check_device, describe, interleave


class Absent(Exception):
    """Something optional that is not there: another library, or an operation not written yet."""


@dataclass
class Bench:
    """One run on one device.

    Attributes:
        device: "cuda" or "cpu".
        ceilings: measured rates: "bandwidth" in bytes per second, "bf16" and "tf32" in operations per second.
        rounds: samples of every contender.
        small: shapes are cut down, to try the bench itself.
    """

    device: str
    seed: int = 0
    ceilings: dict[str, float] = field(default_factory=dict)
    rounds: int = 15
    small: bool = False

    def __post_init__(self) -> None:
        self.random = torch.Generator(self.device).manual_seed(self.seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> Tensor:
        """Random normal numbers; never zeros, on which chips are faster."""
        values = torch.randn(*shape, generator=self.random, device=self.device, dtype=torch.float32)
        return values.mul_(scale).to(dtype)

    def integers(self, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Random whole numbers from 0 to `high - 1`."""
        return torch.randint(high, shape, generator=self.random, device=self.device).to(dtype)

    def limit_us(self, n_bytes: float = 0.0, flops: float = 0.0, kind: str = "bf16") -> float | None:
        """The larger of what the bytes and what the operations take at the measured ceilings."""
        if not self.ceilings.get("bandwidth"):
            return None
        arithmetic = flops / self.ceilings[kind] if flops and self.ceilings.get(kind) else 0.0
        return max(n_bytes / self.ceilings["bandwidth"], arithmetic) * 1e6

    def compare(
        self,
        base: Row,
        contenders: Mapping[str, Callable[[], Contender] | Contender],
        *,
        baseline: str | None = None,
        limits: Mapping[str, tuple[float, float]] | None = None,
        errors: Mapping[str, float] | None = None,
        rounds: int | None = None,
    ) -> Iterator[Row]:
        """Times contenders in turns and gives a row for each.

        Args:
            base: what all rows share.
            contenders: by provider; those that are functions are made first, and may fail.
            baseline: provider the others' ratios refer to.
            limits: least bytes and operations by provider; "" is for all others.
            errors: relative errors by provider.
        """
        made: dict[str, Contender] = {}
        notes: dict[str, str] = {}
        for name, contender in contenders.items():
            try:
                made[name] = contender if isinstance(contender, Contender) else contender()
            except Exception as error:
                notes[name] = describe(error)
                check_device(self.device, error)
        timings = interleave(made, device=self.device, rounds=rounds or self.rounds)
        reference = timings.get(baseline or "", Timing())
        limits = limits or {}
        for name in contenders:
            timing = timings.get(name, Timing(note=notes.get(name, "")))
            n_bytes, flops = limits.get(name, limits.get("", (0.0, 0.0)))
            yield replace(
                base,
                provider=name,
                p50=timing.p50 if timing.ok else None,
                p20=timing.p20 if timing.ok else None,
                p80=timing.p80 if timing.ok else None,
                limit_us=self.limit_us(n_bytes, flops) if n_bytes or flops else None,
                n_bytes=n_bytes or None,
                flops=flops or None,
                ratio=reference.p50 / timing.p50 if reference.ok and timing.ok else None,
                error=(errors or {}).get(name),
                note=timing.note,
            )

    def checked(self, op: str, what: str, error: float, tolerance: float, **config: Any) -> Row:
        """The row of a comparison with float64; its note begins with RED when the error is too large."""
        good = error <= tolerance
        return Row(
            op,
            "rqat",
            mode="check",
            metric="error",
            unit="rel",
            x_name="case",
            x=what,
            config=config,
            p50=error if math.isfinite(error) else None,
            error=error if math.isfinite(error) else None,
            note="" if good else f"RED: {error:.2g} is above {tolerance:.2g}",
        )


def relative(got: Tensor, expected: Tensor) -> float:
    """`|got - expected| / |expected|` in float64; infinite when anything is not finite."""
    got, expected = got.double(), expected.double().to(got.device)
    if not torch.isfinite(got).all():
        return math.inf
    return ((got - expected).norm() / expected.norm().clamp(min=1e-300)).item()


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fills whatever torch allocates uninitialized: floats with NaN, integers with their largest value."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        deterministic.fill_uninitialized_memory = filled
