"""Discrete Fourier transforms: they mix all entries of their axes and leave the others alone."""

from __future__ import annotations

from typing import Any

from ..inference.rule import RuleContext, Terms, op_name, op_rule

_BY_DEFAULT: dict[str, tuple[int, ...] | None] = {  # the axes where a call names none; None: all
    **dict.fromkeys("fft ifft rfft irfft hfft ihfft".split(), (-1,)),
    **dict.fromkeys("fft2 ifft2 rfft2 irfft2 hfft2 ihfft2".split(), (-2, -1)),
    **dict.fromkeys("fftn ifftn rfftn irfftn hfftn ihfftn fftshift ifftshift".split()),
}


@op_rule(*(f"aten::fft_{name}" for name in _BY_DEFAULT))
def transform(c: RuleContext, x: Any, s: Any, dim: Any) -> Terms:
    """Without `dim`, the axes are the last ones that `s` gives sizes for, or all."""
    terms = c.terms(x)
    default = _BY_DEFAULT[op_name(c.node.target).removeprefix("aten::fft_")]
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
