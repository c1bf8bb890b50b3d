"""What a forward may change of the process: random numbers, torch's global flags, filters."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


@contextmanager
def same_process_state() -> Iterator[None]:
    """Random states and global flags are after the block what they were before."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    cpu, own, array = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    dtype, grad, threads = (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
    )
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fast, filters = torch.backends.mha.get_fastpath_enabled(), list(warnings.filters)
    logger = logging.getLogger("torch")
    level, root = logger.level, logging.getLogger().level
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        random.setstate(own)
        numpy.random.set_state(array)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.mha.set_fastpath_enabled(fast)
        if warnings.filters != filters:
            warnings.filters[:] = filters  # type: ignore[index]
        logger.setLevel(level)
        logging.getLogger().setLevel(root)
