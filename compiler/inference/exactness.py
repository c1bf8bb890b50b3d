"""Which dimensions are exact: does zeroing every parameter slice of an entry remove it?

A dimension is exact when, wherever it is summed over, a masked entry contributes zero. This walks
the graph once and keeps, per value, the variables at whose masked entries it may be non-zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from ..ir.memory import memory_owners, written
from ..ir.program import Program, fake_value, source_line
from ..ir.terms import Reason, Var, variables
from .rule import Inference, bound_arguments, op_name

KEEP_ZERO = frozenset(
    (
        "relu relu6 gelu silu tanh neg abs sqrt sin asin sinh asinh tan atan atanh erf square "
        "sign sgn hardtanh hardswish leaky_relu elu selu celu mish dropout feature_dropout "
        "alpha_dropout contiguous to _to_copy clone detach alias type_as expm1 log1p round "
        "floor ceil trunc frac fix hardshrink softshrink tanhshrink prelu positive "
        "lift_fresh_copy nan_to_num native_dropout rad2deg deg2rad multiply_scalar view "
        "reshape _unsafe_view flatten unflatten permute transpose swapaxes t numpy_T mT "
        "movedim unsqueeze squeeze expand expand_as broadcast_to repeat tile "
        "repeat_interleave cat concat stack split split_with_sizes chunk tensor_split unbind "
        "slice narrow select roll flip unfold im2col col2im pixel_shuffle pixel_unshuffle "
        "channel_shuffle sum mean amax amin cumsum index gather index_select take_along_dim "
        "tril triu diagonal view_as reshape_as glu real imag view_as_real view_as_complex "
        "conj lstm gru max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d "
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
        "adaptive_max_pool2d adaptive_max_pool3d max_pool1d_with_indices "
        "max_pool2d_with_indices upsample_nearest1d upsample_nearest2d upsample_nearest3d "
        "upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d "
        "replication_pad1d replication_pad2d grid_sampler zeros new_zeros zeros_like empty "
        "new_empty empty_like hstack vstack row_stack dstack column_stack hsplit vsplit dsplit "
        "embedding linalg_vector_norm norm rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell "
        "rnn_relu_cell fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 "
        "fft_rfft2 fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_fftshift fft_ifftshift"
    ).split()
)
CONTRACTIONS = frozenset(
    (
        "linear matmul mm bmm mv dot einsum conv1d conv2d conv3d convolution _convolution "
        "bilinear conv_transpose1d conv_transpose2d conv_transpose3d addmm baddbmm addmv "
        "outer ger mul multiply tensordot inner vdot _grouped_mm "
        "transformers::grouped_mm_fallback"
    ).split()
)
ADDENDS = {
    "linear": "bias",
    "conv1d": "bias",
    "conv2d": "bias",
    "conv3d": "bias",
    "convolution": "bias",
    "_convolution": "bias",
    "bilinear": "bias",
    "conv_transpose1d": "bias",
    "conv_transpose2d": "bias",
    "conv_transpose3d": "bias",
    "addmm": "x",
    "baddbmm": "x",
    "addmv": "x",
}
SUMS = frozenset(["add", "sub", "rsub", "subtract", "where", "copy", "maximum", "minimum"])
SINGULAR_AT_ZERO = frozenset(["log", "log2", "log10", "rsqrt", "reciprocal"])


def inexact(program: Program, inference: Inference) -> list[tuple[Var, Reason]]:
    """The variables whose masked entries would still count somewhere, with where."""
    return _Zeros(program, inference).run()


class _Zeros:
    def __init__(self, program: Program, inference: Inference) -> None:
        self.program = program
        self.inference = inference
        self.alive: dict[fx.Node, set[Var]] = {}
        self.owners = memory_owners(program.graph)
        self.found: list[tuple[Var, Reason]] = []

    def run(self) -> list[tuple[Var, Reason]]:
        for node in self.program.graph.nodes:
            if node.op == "get_attr" and _holds_indices(node):
                self.alive[node] = self._carried(node)  # index 0 is an entry like the others
            if node.op == "call_function":
                alive = (self._result(node) | self._repeated(node)) & self._carried(node)
                self.alive[node] = alive
                self._write_back(node, alive)
        for sink in self.inference.sinks:
            for var in variables(sink.term):
                carriers = [n for n, _ in sink.operands if var in self._carried(n)]
                if all(var in self.alive.get(n, ()) for n in carriers):
                    self._mark(var, sink.node, "summed over although masked entries are not zero")
        return self.found

    def _mark(self, var: Var, node: fx.Node, text: str) -> None:
        self.found.append((var, Reason(text, node.name, source_line(node))))

    def _carried(self, x: Any) -> set[Var]:
        terms = self.inference.terms.get(x) if isinstance(x, fx.Node) else None
        return set(_variables(terms)) if terms else set()

    def _alive(self, x: Any) -> set[Var]:
        return self.alive.get(x, set()) if isinstance(x, fx.Node) else set()

    def _union(self, nodes: Iterable[fx.Node]) -> set[Var]:
        return set().union(*(self._alive(n) for n in nodes))

    def _repeated(self, node: fx.Node) -> set[Var]:
        """Variables that no operand carries: copies (expand, repeat), which no parameter masks."""
        if not any(self.inference.terms.get(n) for n in node.all_input_nodes):  # made from sizes
            return set()
        if op_name(node.target).removeprefix("aten::") in ("new_zeros", "new_empty"):
            return set()
        return self._carried(node).difference(*map(self._carried, node.all_input_nodes))

    def _result(self, node: fx.Node) -> set[Var]:
        """Variables at whose masked entries the result may be non-zero."""
        name = op_name(node.target).removeprefix("aten::").rstrip("_")
        inputs = node.all_input_nodes
        if node in self.inference.generated:  # made in full, whatever is masked
            return self._carried(node)
        if not name:  # getitem, sizes
            return self._union(inputs)
        given = bound_arguments(node)
        if name == "scaled_dot_product_attention":  # a zero query or key still averages values
            return self._alive(given["value"]) | (
                self._carried(node) - self._carried(given["value"])
            )
        if name in CONTRACTIONS:
            return self._product(node, inputs, given.get(ADDENDS.get(name, "")))
        if name in ("div", "divide", "true_divide"):
            other = given.get("other")
            for var in self._carried(other) - self._alive(other):
                self._mark(var, node, "a masked entry would be divided by zero")
            return self._alive(given["x"]) | (self._carried(other) - self._carried(given["x"]))
        if name in SINGULAR_AT_ZERO:
            for var in self._carried(given["x"]) - self._alive(given["x"]):
                self._mark(var, node, f"{name} of a masked entry is not finite")
            return self._carried(node)
        if name in SUMS:
            return self._sum(node, name, given)
        if name in KEEP_ZERO or self._keeps_zero(name, given):
            return self._union(inputs)
        if name in ("batch_norm", "layer_norm", "group_norm", "rms_norm", "instance_norm"):
            affine = self._carried(given.get("weight"))
            if name in ("batch_norm", "group_norm", "instance_norm") and given.get("bias") is None:
                affine = set()
            return self._carried(node) - affine
        return self._carried(node)

    def _product(self, node: fx.Node, inputs: list[fx.Node], addend: Any) -> set[Var]:
        factors = [n for n in inputs if n is not addend]
        alive = {
            var
            for var in self._carried(node)
            if all(var in self._alive(n) for n in factors if var in self._carried(n))
        }
        if isinstance(addend, fx.Node):
            alive |= self._alive(addend) | (self._carried(node) - self._carried(addend))
        return alive

    def _sum(self, node: fx.Node, name: str, given: dict[str, Any]) -> set[Var]:
        """Zero only where every operand is: one that does not carry the variable counts too."""
        operands = [given.get(k) for k in (("src",) if name == "copy" else ("x", "other"))]
        if any(not isinstance(x, fx.Node) and x != 0 for x in operands):
            return self._carried(node)
        tensors = [x for x in operands if isinstance(x, fx.Node)]
        uncarried = [self._carried(node) - self._carried(x) for x in tensors]
        return self._union(tensors).union(*uncarried)

    def _keeps_zero(self, name: str, given: dict[str, Any]) -> bool:
        if name == "pow":
            exponent = given.get("exponent")
            return isinstance(exponent, (int, float)) and exponent > 0
        if name in ("clamp", "clip", "clamp_min", "clamp_max"):
            low, high = given.get("min"), given.get("max")
            return (low is None or (isinstance(low, (int, float)) and low <= 0)) and (
                high is None or (isinstance(high, (int, float)) and high >= 0)
            )
        if name in ("masked_fill", "fill", "full", "new_full", "full_like"):
            value = given.get("value", given.get("fill_value"))
            return isinstance(value, (int, float)) and value == 0
        if name in ("pad", "constant_pad_nd"):
            return given.get("mode") in (None, "constant") and not given.get("value")
        return name in ("index_put", "scatter", "index_add", "scatter_add")

    def _write_back(self, node: fx.Node, alive: set[Var]) -> None:
        """An in-place result lives on in the values that share the memory it was written to."""
        owners = {self.owners[base] for base in written(node)}
        for other in self.alive if owners else ():
            if self.owners[other] in owners:
                self.alive[other] |= alive & self._carried(other)


def _holds_indices(node: fx.Node) -> bool:
    value = fake_value(node)
    if not isinstance(value, torch.Tensor) or value.dtype == torch.bool:
        return False
    return not value.is_floating_point() and not value.is_complex()


def _variables(terms: Any) -> Iterable[Var]:
    if isinstance(terms, (list, tuple)):
        for term in terms:
            if isinstance(term, (list, tuple)) or term is None:
                yield from _variables(term)
            else:
                yield from variables(term)
