"""What goes out is printed letter by letter, and patterns name modules."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest
import torch
from refused import Takes, X, refused, small
from rich.console import Console
from torch import nn

from prunec import compiler, passes
from prunec.compiler.capture.quiet_meta import quiet_meta
from prunec.compiler.console import PlainTable, plain_console
from prunec.compiler.inference.branches import fits_any
from prunec.compiler.sources.tasks import TASKS, find_columns

ODD = "badnets:zzz: [bold]x[/bold] :smile:"


def test_consoles_print_markup_and_emoji_letter_by_letter() -> None:
    stream = io.StringIO()
    plain_console(stream, 100).print(ODD)
    assert stream.getvalue().strip() == ODD


def test_tables_are_plain_on_every_console() -> None:
    table = PlainTable(title=ODD)
    table.add_column(ODD)
    table.add_row(ODD)
    table.caption = ODD
    stream = io.StringIO()
    Console(file=stream, width=100).print(table)
    assert stream.getvalue().count(ODD) == 4


def test_a_report_is_plain_on_every_console() -> None:
    model = compiler.compile(small(), (X,), target=compiler.Target(params=0.6), measure=False)
    model.report.notes.append(ODD)
    model.report.model = ODD
    stream = io.StringIO()
    model.report.print(Console(file=stream, width=200))
    assert stream.getvalue().count(ODD) == 2


def test_errors_of_the_command_are_plain() -> None:
    command = [sys.executable, "-m", "prunec.compiler", "explain", "badnets:zzz:"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert said.returncode == 1
    assert "badnets:zzz:" in said.stderr


class Parts(nn.Module):
    """An encoder, a decoder, and a module whose name begins like the decoder's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.decoder2 = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder2(self.decoder(self.encoder(x)))


def cut(**options: object) -> set[str]:
    torch.manual_seed(0)
    steps = [passes.MagnitudeScore(), passes.PruneChannels(0.5, **options)]  # type: ignore
    graph = compiler.capture(Parts(), (X,))
    return set(compiler.PassManager([*steps, passes.SparseToDense()]).run(graph).plan.kept)


def test_a_pattern_names_a_module_and_all_within() -> None:
    whole, without, only = cut(), cut(exclude="decoder"), cut(include="decoder")
    assert whole - without == {name for name in whole if name in only}
    assert "decoder2.0:hidden" in without
    assert "decoder.0:hidden" in only - without
    assert "decoder2.0:hidden" not in only


def test_a_pattern_that_fits_nothing_lists_what_there_is() -> None:
    refused(lambda: cut(exclude="coder"), "exclude='coder'", "hidden", "encoder.0:hidden")
    refused(lambda: cut(include="coder"), "pattern 'coder'", "hidden", "encoder.0:hidden")


def test_module_paths_end_at_dots() -> None:
    assert fits_any(["decoder.0.weight"], "decoder")
    assert fits_any(["a.decoder.0.weight"], "*.decoder")
    assert not fits_any(["decoder2.0.weight"], "decoder")


def test_a_role_that_the_task_does_not_read_is_refused() -> None:
    task = TASKS["text2text-generation"]
    refused(
        lambda: find_columns("x.csv", task, ["text", "out"], {"label": "out"}, ["text"]),
        "--column label=out",
        "text and target",
    )
    named = {"text": "text", "target": "out"}
    assert find_columns("x.csv", task, ["text", "out"], named, ["text"]) == named


def test_heads_pass_quietly_where_there_are_none() -> None:
    steps = [passes.MagnitudeScore(), passes.PruneHeads(0.5), passes.PruneChannels(0.5)]
    graph = compiler.capture(Takes(), (X,))
    result = compiler.PassManager([*steps, passes.SparseToDense()]).run(graph)
    assert "no attention heads" in [p.summary for p in result.report.passes]
    chosen = [passes.MagnitudeScore(), passes.PruneHeads(0.5, include="head")]
    refused(lambda: compiler.PassManager(chosen).run(graph), "pattern 'head'", "none")


def test_torch_writes_no_traceback_of_shapes_that_are_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    with quiet_meta():
        logger.error("failed while attempting to run meta")
    assert not caplog.records
    logger.error("something else")
    assert caplog.records
