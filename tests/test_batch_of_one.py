"""A batch of one is captured as what the user gave, where the model does not hold for more rows."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunec import compiler, passes


class Tracker(nn.Module):
    """The template is the kernel: one row by nature."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 32, 3))
        self.h = nn.Conv2d(1, 4, 1)

    def forward(self, z, x):
        return self.h(F.conv2d(self.a(x), self.a(z)))


class Rows(nn.Module):
    def __init__(self, use):
        super().__init__()
        self.a, self.b, self.use = nn.Linear(8, 32), nn.Linear(32, 8), use

    def forward(self, x):
        return self.use(x, self.b(torch.relu(self.a(x))))


def windows(x, y):
    y = y.reshape(-1, 4, 8)
    return y.view(int(y.shape[0] / (16 / 4)), 16, 8)


def one_only(x, y):
    assert x.shape[0] == 1
    return y


def grouped(x, y):
    return F.conv1d(y.reshape(1, -1, 8), y.new_ones(y.shape[0] * 16, 1, 3), groups=x.shape[0] * 16)


USES = {
    "int of a quotient": windows,
    "squeezed": lambda x, y: y.squeeze(0),
    "asserted": one_only,
    "another branch": lambda x, y: y if x.shape[0] == 1 else -y,
    "rows as groups": grouped,
    "any": lambda x, y: y,
}


def cut(model, args):
    steps = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
    return compiler.PassManager(steps).run(compiler.capture(model, args))


@pytest.mark.parametrize("name", USES)
def test_a_result_takes_the_one_row_it_was_captured_with(name):
    x = torch.randn(1, 16, 8)
    model = Rows(USES[name]).eval()
    result = cut(model, (x,))
    assert result.example()[0][0].shape == x.shape
    assert result.graph_module(x).shape == model(x).shape
    assert result.graph_module(x).sub(result.model(x)).abs().max() < 1e-5


def test_a_kernel_computed_from_an_input_is_captured():
    args = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 16, 16)
    result = cut(Tracker().eval(), args)
    assert result.graph_module(*args).shape == (1, 4, 9, 9)


def test_one_row_leaves_the_batch_free_where_the_model_does():
    graph = compiler.capture(Rows(USES["any"]).eval(), (torch.randn(1, 16, 8),))
    assert graph.program.batched
