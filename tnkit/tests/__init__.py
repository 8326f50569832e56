"""Unit tests, shipped with the package so that `pytest --pyargs tnkit` works."""
