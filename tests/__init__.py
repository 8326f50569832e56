"""Tests that cross modules: the command line, the packaged model, packaging, benchmarks."""
