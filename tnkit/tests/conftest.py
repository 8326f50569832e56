"""Shapes in signatures are checked while tests run."""

import os

import beartype  # noqa: F401 - it cannot be imported once nnsight has been
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")
install_import_hook("tnkit", "beartype.beartype")
