"""Conformance suites: what the host relies on, as tests a plugin author subclasses.

    import rqat.testing

    class TestAcme(rqat.testing.QuantizerSuite):
        name = "acme"

Run them with pytest, or without it by `rqat plugins doctor`, which also runs suites that a plugin brings in a module
`conformance` of its own (see `doctor.py`). torch is imported when a test runs.
"""

from .data import ComparisonSuite, SourceSuite, TaskSuite
from .doctor import Result, examine
from .exporters import ExporterSuite
from .grids import GridSuite
from .objectives import ObjectiveSuite
from .quantizers import QuantizerSuite
from .rewards import RewardSuite
from .suite import Suite, expect
from .transforms import TransformSuite

__all__ = [
    "ComparisonSuite",
    "ExporterSuite",
    "GridSuite",
    "ObjectiveSuite",
    "QuantizerSuite",
    "Result",
    "RewardSuite",
    "SourceSuite",
    "Suite",
    "TaskSuite",
    "TransformSuite",
    "examine",
    "expect",
]
