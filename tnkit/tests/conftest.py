"""Shapes in signatures are checked while tests run."""

import os
import signal
import sys

import beartype  # noqa: F401 - it cannot be imported once nnsight has been
import pytest
from jaxtyping import install_import_hook

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")
install_import_hook("tnkit", "beartype.beartype")


@pytest.fixture(autouse=True)
def close_figures():
    """Figures of a test do not pile up."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
