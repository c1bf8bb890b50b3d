"""Whether a call can be taken at another batch size, and models for which it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import floats, module
from torch import Tensor, nn

from prunec import compiler
from prunec.compiler import Target

EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0], [1, 2, 0, 4, 3, 6, 5, 6]])


def edges_of_a_graph() -> tuple[nn.Module, tuple[Tensor, ...]]:
    def forward(self: Any, x: Tensor, edges: Tensor) -> Tensor:
        h = self.body(x).relu()
        sums = torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])
        return self.head(h + sums)

    return module(forward, body=nn.Linear(5, 8), head=nn.Linear(8, 2)), (floats(7, 5), EDGES)


def keys_before_their_batch() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """[keys, batch, width] beside a mask of [batch, keys]: axis 0 of most inputs is no batch."""

    def forward(self: Any, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
        weights = self.score(key.relu())[..., 0].T * seen  # [batch, keys]
        return self.head(self.body(torch.einsum("bk,kbd->bd", weights, value)).relu())

    parts = {"score": nn.Linear(5, 1), "body": nn.Linear(5, 8), "head": nn.Linear(8, 2)}
    return module(forward, **parts), (floats(6, 3, 5), floats(6, 3, 5), torch.ones(3, 6).bool())


@pytest.mark.parametrize("build", [edges_of_a_graph, keys_before_their_batch])
def test_inputs_that_number_each_other_are_compiled_as_they_are(
    build: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]],
) -> None:
    model, args = build()
    result = compiler.compile(model, args, target=Target(width=0.5), measure=False)
    assert type(result.model) is type(model)
    result.verify()


@pytest.mark.parametrize(
    ("second", "free"),
    [
        (floats(4, 8), True),
        (floats(1, 8), True),
        (torch.arange(16).reshape(2, 8), True),  # 15 is no row of the first
        (torch.arange(16).reshape(2, 8) % 4, False),
    ],
)
def test_a_batch_is_free_unless_whole_numbers_beside_it_may_be_its_rows(
    second: Tensor, free: bool
) -> None:
    def forward(self: Any, x: Tensor, other: Tensor) -> Tensor:
        return self.head(x) + other.sum()

    net = module(forward, head=nn.Linear(7, 2))
    assert compiler.capture(net, (floats(4, 7), second)).program.batched is free
