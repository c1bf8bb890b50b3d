"""A graph-rewriting compression compiler for PyTorch: `prunec.compiler` and `prunec.passes`."""
