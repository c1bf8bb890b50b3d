"""Discrete Fourier transforms: they mix all entries of their axes and leave the others alone."""

from __future__ import annotations

from typing import Any

from ..inference.rule import RuleContext, Terms, op_rule

ALONG_ONE = "fft ifft rfft irfft hfft ihfft"
ALONG_TWO = "fft2 ifft2 rfft2 irfft2 hfft2 ihfft2"
ALONG_MANY = "fftn ifftn rfftn irfftn hfftn ihfftn fftshift ifftshift"


def _transform(default: list[int] | None) -> Any:
    def rule(c: RuleContext, x: Any, s: Any, dim: Any) -> Terms:
        """Without `dim`, the axes are the last ones that `s` gives sizes for, or all."""
        terms = c.terms(x)
        axes = dim if isinstance(dim, (list, tuple)) else default if dim is None else [dim]
        if axes is None:
            axes = range(-len(s or terms), 0)
        mixed = {c.axis(axis, len(terms)) for axis in axes}
        for axis in mixed:
            c.block(terms[axis], "Fourier transform along it")
        return [
            c.fixed(c.out_shape[axis], "frequencies") if axis in mixed else term
            for axis, term in enumerate(terms)
        ]

    return rule


for _names, _default in ((ALONG_ONE, [-1]), (ALONG_TWO, [-2, -1]), (ALONG_MANY, None)):
    op_rule(*(f"aten::fft_{name}" for name in _names.split()))(_transform(_default))
