"""What the GPU benchmark times: models from configurations, a decoding step, replayed graphs."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.compiler.inference.graph import Graph
from prunec.compiler.plan import Plan
from prunec.compiler.result import Result

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
EXAMPLES = 2  # of a capture
DEPTH = 0.5  # of the residual branches, at most
Inputs = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model: how it is made, tiny or at its full size, what it reads, its throughput batch."""

    make: Callable[[bool], nn.Module]
    reads: str  # "pixels" or "tokens"
    length: int  # pixels of a side, or tokens of a prompt
    many: int
    phases: tuple[str, ...] = ("forward",)


def resnet_50(tiny: bool) -> nn.Module:
    """25.6M parameters."""
    sizes: dict[str, Any] = {"num_labels": 1000}
    if tiny:
        sizes = {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [2, 2], "num_labels": 7}
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes))


def vit_b_16(tiny: bool) -> nn.Module:
    """86M parameters."""
    sizes: dict[str, Any] = {"num_labels": 1000}
    if tiny:
        sizes = {"image_size": 32, "patch_size": 8, "num_labels": 7, **_TINY}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes))


def bert_base(tiny: bool) -> nn.Module:
    """110M parameters."""
    config = transformers.BertConfig(**(_TINY if tiny else {}))
    return transformers.BertForSequenceClassification(config)


def llama_1b(tiny: bool) -> nn.Module:
    """Llama-3.2-1B's shape, 1.24B parameters: 32 query heads on 8 of keys and values."""
    sizes: dict[str, Any] = {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    }
    if tiny:
        sizes |= {**_TINY, "num_key_value_heads": 2, "vocab_size": 99}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))


_TINY: dict[str, int] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SHAPES = {
    "resnet_50": Shape(resnet_50, "pixels", 224, 128),
    "vit_b_16": Shape(vit_b_16, "pixels", 224, 128),
    "bert_base": Shape(bert_base, "tokens", 128, 128),
    "llama_1b": Shape(llama_1b, "tokens", 512, 16, ("prefill", "decode")),
}


@dataclasses.dataclass(frozen=True)
class Smaller:
    """A model made smaller: the shares of parameters and MACs it keeps, and its MACs a sample."""

    model: nn.Module
    params: float
    macs: float
    macs_left: int

    @property
    def bytes(self) -> int:
        """Of its parameters."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())


class Subject:
    """One model in one dtype on a device, and half of its heads, hidden units and channels cut.

    `like`: another dtype's subject, whose plan is carried out on this one; without it the model is
    captured, cut and proven.
    """

    def __init__(
        self,
        name: str,
        dtype: str,
        device: torch.device,
        tiny: bool,
        like: tuple[Plan, Smaller] | None = None,
    ) -> None:
        self.name, self.dtype, self.device = name, dtype, device
        self.shape = SHAPES[name]
        self.length = (32 if self.shape.reads == "pixels" else 16) if tiny else self.shape.length
        torch.manual_seed(0)
        with torch.device(device):
            self.model = self.shape.make(tiny).to(device, DTYPES[dtype]).eval()
        if like is None:
            result = self._cut(ratio=0.5)
            self.plan, self.half = result.plan, smaller(result)
        else:
            self.plan = like[0]
            model = self.plan.apply(self.model, kwargs=self.inputs(EXAMPLES))
            self.half = dataclasses.replace(like[1], model=model)

    @functools.cached_property
    def graph(self) -> Graph:
        """The captured model."""
        return compiler.capture(self.model, kwargs=self.inputs(EXAMPLES))

    def inputs(self, batch: int, length: int | None = None) -> Inputs:
        """Random pixels or tokens."""
        if self.shape.reads == "pixels":
            size = (batch, 3, self.length, self.length)
            return {"pixel_values": torch.randn(size, device=self.device, dtype=self._dtype)}
        size = (batch, length or self.length)
        below = self.model.config.vocab_size  # type: ignore[union-attr]
        return {"input_ids": torch.randint(0, int(below), size, device=self.device)}  # type: ignore[arg-type]

    def asked(self, speedup: float, batch: int, runtime: str) -> Result:
        """Cut to a target of speed; at batch 1, where launches bound the time, in depth too. Raises
        what the passes raise."""
        target = compiler.Target(speedup=speedup, runtime=runtime, batch=batch)
        depth = DEPTH if batch == 1 else 0.0
        return self._cut(passes.AllocateWidths(target, method="knapsack", depth=depth))

    def pair(self, smaller: nn.Module, phase: str, batch: int) -> tuple[list[nn.Module], Inputs]:
        """Original and smaller, ready for a phase, and the inputs of one call."""
        if phase != "decode":
            return [self.model, smaller], self.inputs(batch)
        prompt = self.inputs(batch)["input_ids"]
        both = [Decode(model, prompt) for model in (self.model, smaller)]
        return list(both), self.inputs(batch, length=1)

    @property
    def _dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def _cut(self, widths: Any = None, ratio: float | None = None) -> Result:
        kinds = {d.kind for d in self.graph.prunable.values()}
        pipeline = [passes.MagnitudeScore()]
        pipeline += [widths] if widths is not None else []
        pipeline += [passes.PruneHeads(ratio=ratio)] if kinds & {"head", "kv-head"} else []
        # The residual stream of a transformer stays, as it would where quality counts.
        pipeline += [passes.PruneChannels(ratio=ratio, exact_only=widths is None)]
        return compiler.PassManager([*pipeline, passes.SparseToDense()]).run(self.graph)


def smaller(result: Result) -> Smaller:
    """What a result is, for the table."""
    before, after = result.report.before, result.report.after
    shares = after.params / before.params, after.macs / before.macs
    return Smaller(result.model, *shares, after.macs)


class Decode(nn.Module):
    """One step of generation after a prompt: every call adds one token to the cache and takes it
    away again, so that all calls do the same."""

    def __init__(self, model: Any, prompt: Tensor) -> None:
        super().__init__()
        self.model = model
        with torch.inference_mode():
            self.cache = model(input_ids=prompt, logits_to_keep=1, use_cache=True).past_key_values

    def forward(self, input_ids: Tensor) -> Tensor:
        out = self.model(input_ids=input_ids, past_key_values=self.cache, use_cache=True)
        self.cache.crop(-1)
        return out.logits


class Replayed(nn.Module):
    """A model's kernels recorded once as a CUDA graph and replayed: its time without launches."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(side):
            for _ in range(3):
                model(**inputs)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        # What the graph reads must outlive the recording, which puts other tensors in its place.
        layers = getattr(getattr(model, "cache", None), "layers", ())
        self.read = [t for layer in layers for t in vars(layer).values() if isinstance(t, Tensor)]
        self.graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(self.graph):
            self.made = model(**inputs)

    def forward(self, **inputs: Tensor) -> Any:
        self.graph.replay()
        return self.made


def device_peaks(device: torch.device, dtype: str, tiny: bool) -> dict[str, float]:
    """What the device does at best, measured: GB/s of a copy (read and written), TFLOP/s of a
    square matrix product."""
    size = 64 if tiny else 8192
    a = torch.randn(size, size, device=device, dtype=DTYPES[dtype])
    source = torch.empty(1 << (12 if tiny else 30), dtype=torch.uint8, device=device)
    goal = torch.empty_like(source)
    copy = _seconds(lambda: goal.copy_(source), device)
    product = _seconds(lambda: a @ a, device)
    return {"GB/s": 2 * source.numel() / copy / 1e9, "TFLOP/s": 2 * size**3 / product / 1e12}


def _seconds(call: Callable[[], object], device: torch.device, runs: int = 5) -> float:
    """The fastest of some calls."""
    best = float("inf")
    for _ in range(runs):
        synchronise(device)
        began = time.perf_counter()
        call()
        synchronise(device)
        best = min(best, time.perf_counter() - began)
    return best


def synchronise(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
