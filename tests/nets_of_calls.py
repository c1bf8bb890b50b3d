"""Nets with unusual inputs, outputs, regions and writes."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from nets import TOKENS, floats, module, structure, weight
from torch import Tensor, nn


@structure("hidden 9", "hidden 6", args=(TOKENS,), other=floats(3, 4))
def several_inputs_and_outputs() -> nn.Module:
    def forward(self: Any, x: Tensor, other: Tensor) -> tuple[Tensor, list[Tensor]]:
        a = self.a(x).relu() * self.b(other)[:, None]
        c = self.c(a).relu()
        return self.head(c), [self.side(a), c.sum(-1)]

    return module(
        forward,
        a=nn.Linear(8, 9),
        b=nn.Linear(4, 9),
        c=nn.Linear(9, 6),
        head=nn.Linear(6, 5),
        side=nn.Linear(9, 3),
    )


@structure("hidden 9", args=({"tokens": TOKENS, "scale": floats(3, 1, 1)},))
def dicts_in_and_out() -> nn.Module:
    def forward(self: Any, batch: dict[str, Tensor]) -> dict[str, Any]:
        x = self.a(batch["tokens"]).relu() * batch["scale"]
        return {"logits": self.head(x), "more": {"sum": x.sum(-1)}, "none": None}

    return module(forward, a=nn.Linear(8, 9), head=nn.Linear(9, 5))


@structure("hidden 9", args=(TOKENS,))
def model_output() -> nn.Module:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    def forward(self: Any, x: Tensor) -> BaseModelOutputWithPooling:
        x = self.a(x).relu()
        y = self.head(x)
        return BaseModelOutputWithPooling(last_hidden_state=y, pooler_output=y[:, 0])

    return module(forward, a=nn.Linear(8, 9), head=nn.Linear(9, 5))


@structure("head-dim 4~", "head-dim 5~", args=(TOKENS,))
def view_of_a_view_written() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.up(x)
        flat = y.view(-1, 9)
        pick = y[..., :4]
        y.add_(1.0)
        flat.mul_(self.scale)
        return (
            self.head(pick.relu())
            + self.tail(flat.view(-1, 7, 9))
            + (y @ y.transpose(1, 2)).sum(-1, keepdim=True)
        )

    return module(
        forward, up=nn.Linear(8, 9), scale=weight(9), head=nn.Linear(4, 5), tail=nn.Linear(9, 5)
    )


@structure("residual 9", args=(TOKENS,))
def buffer_counter() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.calls.add_(1)
        self.mean.lerp_(self.up(x).mean((0, 1)).detach(), 0.1)
        return self.head(self.up(x) - self.mean)

    return module(
        forward,
        up=nn.Linear(8, 9),
        calls=torch.zeros(()),
        mean=torch.zeros(9),
        head=nn.Linear(9, 5),
    )


@structure("hidden 10", "hidden 6", "hidden 9", args=(TOKENS,))
def regions_without_grad() -> nn.Module:
    import torch.utils.checkpoint

    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.a(x).relu()
        y = torch.utils.checkpoint.checkpoint(lambda t: self.b(t).relu(), y, use_reentrant=False)
        with torch.autocast("cpu", enabled=False):
            y = self.c(y)
        return self.head(y)

    return module(
        forward, a=nn.Linear(8, 9), b=nn.Linear(9, 10), c=nn.Linear(10, 6), head=nn.Linear(6, 5)
    )


@structure("hidden 9", args=(TOKENS,))
def input_written_in_place() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x += 1
        return self.head(self.a(x).relu_().clamp_(max=2.0)), self.head.bias

    return module(forward, a=nn.Linear(8, 9), head=nn.Linear(9, 5))


@structure("hidden 7", args=(TOKENS,))
def op_without_a_rule() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        bounded = torch.renorm(self.mixed(x), 2, 1, 0.5)
        return self.head(bounded) + self.tail(self.free(x).relu())

    return module(
        forward,
        mixed=nn.Linear(8, 9),
        head=nn.Linear(9, 5),
        free=nn.Linear(8, 7),
        tail=nn.Linear(7, 5),
    )


class Detection(NamedTuple):
    boxes: Tensor
    scores: Tensor


@structure("hidden 9", "hidden 6", args=(TOKENS,))
def named_tuple_out() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Detection:
        x = self.a(x).relu()
        return Detection(self.boxes(self.b(x).relu()), scores=self.scores(x).sigmoid())

    return module(
        forward,
        a=nn.Linear(8, 9),
        b=nn.Linear(9, 6),
        boxes=nn.Linear(6, 4),
        scores=nn.Linear(9, 3),
    )


@dataclasses.dataclass
class Prediction:
    logits: Tensor
    hidden: list[Tensor]


torch.export.register_dataclass(Prediction)


@structure("hidden 6", args=(TOKENS,))
def dataclass_out() -> nn.Module:
    """What is returned is fixed; what it is made from is not."""

    def forward(self: Any, x: Tensor) -> Prediction:
        x = self.a(x).relu()
        return Prediction(self.head(self.b(x).relu()), [x])

    return module(forward, a=nn.Linear(8, 9), b=nn.Linear(9, 6), head=nn.Linear(6, 5))


@structure("hidden 7", args=(TOKENS,))
def branch_inside_the_graph() -> nn.Module:
    """What a torch.cond reads and returns is fixed; the layers beside it are not."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = torch.cond(x.sum() > 0, lambda t: t.relu(), lambda t: t.tanh(), (self.mixed(x),))
        return self.head(y) + self.tail(self.free(x).relu())

    return module(
        forward,
        mixed=nn.Linear(8, 9),
        head=nn.Linear(9, 5),
        free=nn.Linear(8, 7),
        tail=nn.Linear(7, 5),
    )


@structure("hidden 7", args=(TOKENS,))
def transform_of_frequencies() -> nn.Module:
    """Complex values of a Fourier transform are fixed; the layers beside them are not."""

    def forward(self: Any, x: Tensor) -> Tensor:
        waves = torch.fft.rfft(self.mixed(x), dim=-1) * torch.view_as_complex(self.filter)
        y = torch.fft.irfft(waves, n=9, dim=-1)
        return self.head(y) + self.tail(self.free(x).relu())

    return module(
        forward,
        mixed=nn.Linear(8, 9),
        filter=weight(5, 2),
        head=nn.Linear(9, 5),
        free=nn.Linear(8, 7),
        tail=nn.Linear(7, 5),
    )
