"""Where the public data sets lie, for tests that read them."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root():
    """Folder named by RQAT_DATA; the test is skipped when there is none."""
    root = Path(os.environ.get("RQAT_DATA", ""))
    if "RQAT_DATA" not in os.environ or not root.is_dir():
        pytest.skip("needs the public data sets: set RQAT_DATA to their folder")
    return root
