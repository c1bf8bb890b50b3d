"""The benchmarks of repair and planted redundancy: what they plant and count is what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunec import compiler, passes

pytest.importorskip("sklearn", reason="the benchmarks need prunec[demo,bench]")
pytest.importorskip("torch_pruning", reason="the benchmarks need prunec[demo,bench]")

import plain_digits
import planted
import planted_nets
import planting
import repair
import repair_peer
import repair_subjects
import repair_table
from byte_transformer import ByteTransformer, windows


def digits_net() -> nn.Module:
    torch.manual_seed(0)
    return plain_digits.trained(0, epochs=1)


def byte_net() -> nn.Module:
    torch.manual_seed(0)
    return ByteTransformer(width=64, layers=2, hidden=64).eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", planted_nets.KINDS)
@pytest.mark.parametrize(("name", "make"), [("digits", digits_net), ("bytes", byte_net)])
def test_planting_keeps_the_function_and_hides(name, make, kind):
    net = planted_nets.NETS[name]((kind,), make(), 0)
    assert sum(net.planted.values()) > 0
    assert planted.output_error(net, net.model) < 1e-5
    grown = sum(p.numel() for p in net.model.parameters())
    assert grown > sum(p.numel() for p in net.original.parameters())
    # Each planted entry is a row of its tensor more than the original's, branches aside.
    state, old = net.model.state_dict(), net.original.state_dict()
    for (tensor, dimension), count in net.planted.items():
        if kind in planted_nets.BRANCHES or tensor not in old:
            continue
        rows, before = state[tensor].shape[0], old[tensor].shape[0]
        per_entry = {"head": 8, "head-dim": 8}.get(dimension, 1)
        assert rows - before == count * per_entry
        assert not torch.equal(state[tensor][:before], old[tensor])  # not simply at the end


def test_planted_kinds_are_what_they_say():
    linear, reader = nn.Linear(6, 8), nn.Linear(8, 3)
    x = torch.randn(64, 6)
    generator = torch.Generator().manual_seed(0)

    def hidden() -> Tensor:
        return torch.relu(linear(x)).detach()

    expected = reader(hidden())
    place = planting.Place("p", [linear], reader, 8)
    assert planting.inactive(place, 3, generator, lambda: linear(x)) == 3
    assert (hidden()[:, 8:] == 0).all()
    assert (linear.weight[8:] != 0).all()
    assert (reader.weight[:, 8:] != 0).all()
    assert planting.cancelling(place, 2, generator) == 2
    pair = hidden()[:, 11:13] * reader.weight[:1, 11:13]
    torch.testing.assert_close(pair[:, 0], -pair[:, 1])
    assert planting.duplicates(place, 1, generator) == 1
    ratios = [hidden()[:, 13] / hidden()[:, j] for j in range(13)]
    assert any((r.nan_to_num(r.nanmean()).std() < 1e-5) and r.nanmean() != 1 for r in ratios)
    assert place.size == linear.out_features == reader.in_features == 14
    planting.shuffled(place, generator)
    torch.testing.assert_close(reader(hidden()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["duplicates", "mixtures"])
def test_what_is_planted_in_digits_is_found(kind):
    row = planted.one("digits", kind, (kind,), 0, digits_net())
    assert row["found"] == row["planted"] > 0
    assert row["output error"] < 1e-5
    for counts in row["dimensions"].values():
        assert counts["removed"] <= counts["size"] - 1


@pytest.mark.slow
def test_every_cell_of_the_repair_table_is_measured(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(repair_subjects, "kept", lambda cache, name, seed: digits_net())
    subject = repair_subjects.digits(0, None)
    subject.widths = subject.widths[:1]
    cells = list(repair.cells(subject, 0, set()))
    keys = {tuple(cell[k] for k in repair.KEY) for cell in cells}
    assert len(keys) == len(cells)
    original, *cut = cells
    assert original["KL"] == 0
    assert original["parameters"] == 1
    # Halves of 32, 64, 64 channels and 128 units, with both tools.
    assert {cell["parameters"] for cell in cut} == {23114 / 90250}
    least = [c["KL"] for c in cut if c["repair"] == "least squares"]
    assert max(least) < min(c["KL"] for c in cut if c["repair"] == "raw")
    # What is known is not measured again.
    assert len(list(repair.cells(subject, 0, keys))) == 0
    repair_table.plot(cells, tmp_path / "repair.png")
    assert (tmp_path / "repair.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_peer_cuts_heads_and_hidden_units_to_the_same_widths():
    model = byte_net()
    ids = windows("train", 4)[:, :-1]
    subject = repair_subjects.Subject(
        "bytes", model, ("hidden",), True, [ids], repair_subjects.HALVES, lambda m: {}, None
    )
    width = subject.widths[1]
    pruned = repair_peer.prune(subject, "magnitude", width, 0)
    graph = compiler.capture(model, (ids,))
    steps = repair.pipeline(subject, passes.MagnitudeScore(), width, [])
    mine = compiler.PassManager(steps).run(graph, [ids]).model
    shapes = {n: tuple(p.shape) for n, p in mine.named_parameters()}
    assert shapes == {n: tuple(p.shape) for n, p in pruned.named_parameters()}
    with torch.no_grad():
        assert pruned(ids).shape == model(ids).shape
