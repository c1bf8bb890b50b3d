"""Least-squares repair: which layers read pruned inputs, what is solved, where biases go."""
