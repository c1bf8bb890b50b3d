"""What can be refused is refused before anything expensive runs: nothing is captured, no model is
opened."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import test_cli
import torch
from test_cli import HALF, Run
from tiny_models import IMAGES, small_cnn
from torch import nn
from torch.utils.data import DataLoader

from prunec import compiler, passes
from prunec.compiler import Target
from prunec.compiler.errors import ExportError, NonFiniteError, PlanError, PrunecError, TargetError
from prunec.compiler.onnx_files.dtypes import computes, refuse_dtypes

run = test_cli.run

NET = ("compile", "@net", *HALF)


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("it ran")

    monkeypatch.setattr("prunec.compiler.driver.capture", never)
    monkeypatch.setattr("prunec.compiler.commands.compile.open_model", never)


NAN, INF = float("nan"), float("inf")


def occupied(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "below"


ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "target": ({"target": 2.0}, "target is a Target"),
    "floor, text": ({"floor": "a"}, "takes a number for 'floor', not 'a'"),
    "floor, nan": ({"floor": NAN}, "takes a finite number for 'floor', not nan"),
    "floor, yes": ({"floor": True}, "takes a number for 'floor', not True"),
    "rounds": ({"rounds": 1.5}, "takes a whole number for 'rounds', not 1.5"),
    "calibration": ({"calibration": 5}, "calibration is a int, which does not yield batches"),
    "calibration, rows": ({"calibration": IMAGES}, "calibration is a Tensor"),
    "calibration, text": ({"calibration": "x.csv"}, "calibration is a str"),
    "train": ({"train": 5}, "train is a int"),
    "evaluate": ({"evaluate": 0.9}, r"takes a function .* for 'evaluate'"),
    "callback": ({"callback": "print"}, "takes a function .* for 'callback'"),
    "device": ({"device": "nope"}, "device=nope cannot be computed on here"),
    "device, number": ({"device": 99}, "device=99 cannot be computed on here"),
    "options": ({"options": {"distill": 3}}, "takes a table of tables for 'options'"),
    "unknown option": ({"options": {"allocate-widths": {"nope": 1}}}, "has no option 'nope'"),
    "recipe": ({"recipe": "nowhere.toml"}, r"recipe nowhere\.toml cannot be read"),
    "checkpoint": ({"checkpoint": occupied}, "checkpoint .* cannot be written to"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_of_compile_are_refused_before_capture(
    nothing_runs: None, tmp_path: pathlib.Path, case: str
) -> None:
    given, said = ARGUMENTS[case]
    given = {k: v(tmp_path) if v is occupied else v for k, v in given.items()}
    with pytest.raises(PrunecError, match=said):
        compiler.compile(small_cnn(), (IMAGES,), **{"target": Target(width=0.5), **given})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_cuda_where_there_is_none_is_refused_before_capture(nothing_runs: None) -> None:
    with pytest.raises(PlanError, match="device=cuda cannot be computed on here"):
        compiler.compile(small_cnn(), (IMAGES,), target=Target(width=0.5), device="cuda")


@pytest.mark.parametrize("aim", ["width", "params", "speedup", "latency_ms", "error"])
@pytest.mark.parametrize("value", [NAN, INF, "2", True, torch.ones(2)])
def test_a_target_is_a_number(aim: str, value: Any) -> None:
    with pytest.raises(TargetError):
        Target(**{aim: value})


@pytest.mark.parametrize(
    "made",
    [
        lambda: passes.PruneChannels(ratio=NAN),
        lambda: passes.PruneHeads(ratio=NAN),
        lambda: passes.DropLayers(ratio=NAN),
        lambda: passes.SparsifyWeights(amount=NAN),
        lambda: passes.AllocateWidths(Target(width=0.5), floors=NAN),
        lambda: passes.AllocateWidths(Target(width=0.5), depth=NAN),
        lambda: passes.Reconstruct(ridge=NAN),
        lambda: passes.SecondOrderScore(ridge=NAN),
        *(
            lambda name=name: passes.Distill([IMAGES], **{name: NAN})
            for name in ("alpha", "temperature", "learning_rate", "clip", "features", "ema")
        ),
    ],
)
def test_no_option_of_a_pass_is_nan(made: Any) -> None:
    with pytest.raises(PrunecError, match="nan"):
        made()


OPTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "emit": (("--emit", "onxx"), "--emit takes torch, onnx"),
    "two of int8": (("--emit", "int8,int8-static"), "--emit takes torch, onnx"),
    "device": (("--device", "nope"), "--device nope cannot be computed on here"),
    "recipe": (("--recipe", "nowhere.toml"), "recipe nowhere.toml cannot be read"),
    "column": (("--data", "x.csv", "--column", "label"), "is not ROLE=COLUMN"),
    "depth": (("--depth", "nan"), "--depth nan"),
    "depth out of range": (("--depth", "2"), "depth=2.0 is the share"),
    "learning rate": (("--data", "x.csv", "--learning-rate", "nan"), "--learning-rate nan"),
    "checkpoint": (("--checkpoint", "file/below"), "--checkpoint file/below cannot be written to"),
    "out below a file": (("--out", "file/below"), "exists and is no directory"),
    "out is a file": (("--out", "file"), "exists and is no directory"),
    "out is foreign": (("--out", "foreign"), "is no prunec artifact"),
    "out is a disk's": (("--out", "/proc/here"), "cannot be written to"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_are_refused_before_the_model_is_opened(
    run: Run, nothing_runs: None, case: str
) -> None:
    pathlib.Path("file").write_text("")
    pathlib.Path("foreign").mkdir()
    pathlib.Path("foreign/thesis.txt").write_text("dear")
    before = set(pathlib.Path().rglob("*"))
    given, expected = OPTIONS[case]
    said = run(*NET, *given)
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert expected in said.err
    assert {p for p in pathlib.Path().rglob("*") if "__pycache__" not in p.parts} == before


def test_a_place_that_another_run_holds_is_refused_before_the_model_is_opened(
    run: Run, nothing_runs: None
) -> None:
    from prunec.compiler.artifact.place import OutputPlace

    with OutputPlace("small"):
        said = run(*NET, "--out", "small")
    assert (said.code, "is writing to" in said.err) == (1, True)


# ONNX and dtypes.


@pytest.mark.skipif(computes(torch.bfloat16, "MatMul"), reason="this onnxruntime knows bfloat16")
@pytest.mark.parametrize("emit", ["onnx", "torch,int8"])
def test_onnx_of_bfloat16_is_refused_before_the_compile(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, emit: str
) -> None:
    (tmp_path / "half.py").write_text(
        "from tiny_models import IMAGES, small_cnn\n"
        "def net(): return small_cnn().bfloat16(), IMAGES.bfloat16()\n"
    )
    monkeypatch.setattr("prunec.compiler.driver.capture", None)
    said = run("compile", "half:net", *HALF, "--emit", emit)
    assert (said.code, "onnxruntime does not compute" in said.err) == (1, True)
    assert "load the model in float32" in said.err
    assert not pathlib.Path("prunec-out").exists()


def test_what_onnxruntime_computes_is_found_out_by_trying() -> None:
    refuse_dtypes(small_cnn())
    refuse_dtypes(small_cnn().half())
    assert not computes(torch.complex64, "MatMul")
    if not computes(torch.float64, "Conv"):
        refuse_dtypes(nn.Linear(2, 2).double())
        with pytest.raises(ExportError, match="does not compute Conv in float64"):
            refuse_dtypes(small_cnn().double())


# NaN and infinities.


def batches(bad: float | None = None, at: int = 2) -> list[torch.Tensor]:
    found = list(torch.randn(4, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    if bad is not None:
        found[at][1, 2, 3, 4] = bad
    return found


def compiled(model: nn.Module | None = None, args: Any = (IMAGES,), **options: Any) -> Any:
    chosen = {"target": Target(width=0.5), "measure": False, **options}
    return compiler.compile(model or small_cnn(), args, **chosen)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("kind", ["calibration", "calibration, read once", "train"])
def test_a_bad_value_in_a_batch_is_named_before_capture(
    nothing_runs: None, bad: float, kind: str
) -> None:
    data: Any = batches(bad)
    word = "NaN" if bad != bad else "infinite"
    if kind == "train":
        name, given = "training batch", {"train": [(x, torch.zeros(2).long()) for x in data]}
    else:
        name, given = "calibration batch", {"calibration": iter(data) if "once" in kind else data}
    with pytest.raises(NonFiniteError, match=rf"{name} 3 has 1 {word} of 384 values in the input"):
        compiled(**given)


def test_a_bad_value_that_a_loader_gives_late_is_named_when_it_is_read() -> None:
    class Late(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield from batches()
            yield from batches(NAN)

    data = DataLoader(Late(), batch_size=None)
    options = {"distill": {"steps": 8, "progress": False}}
    with pytest.raises(NonFiniteError, match="training batch 7 has 1 NaN"):
        compiled(train=data, calibration=batches(), options=options)


def test_a_bad_value_for_one_pass_is_named() -> None:
    graph = compiler.capture(small_cnn(), (IMAGES,))
    first = [passes.SecondOrderScore(batches(NAN)), passes.PruneChannels(ratio=0.5)]
    with pytest.raises(NonFiniteError, match="second-order-score: calibration batch 3 has 1 NaN"):
        compiler.PassManager([*first, passes.SparseToDense()]).run(graph)
    with pytest.raises(NonFiniteError, match="calibration batch 3 has 1 NaN"):
        compiler.PassManager([passes.MagnitudeScore()]).run(graph, batches(NAN))


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_bad_value_in_the_example_is_named_before_capture(nothing_runs: None, bad: float) -> None:
    example = IMAGES.clone()
    example[0, 0, 0, 0] = bad
    with pytest.raises(NonFiniteError, match=r"the example has 1 .* in the input 'x'"):
        compiled(args=(example,))


@pytest.mark.parametrize("name", ["first.weight", "norm.running_var"])
def test_a_bad_value_in_the_weights_is_named_before_capture(nothing_runs: None, name: str) -> None:
    model = small_cnn()
    names = [*dict(model.named_parameters()), *dict(model.named_buffers())]
    name = name if name in names else next(n for n in names if n.endswith(name.split(".")[1]))
    with torch.no_grad():
        {**dict(model.named_parameters()), **dict(model.named_buffers())}[name].flatten()[0] = NAN
    with pytest.raises(NonFiniteError, match=rf"the model has 1 NaN of .* in '{name}'"):
        compiled(model)


def test_the_command_names_a_bad_batch(run: Run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "bad_data.py").write_text(
        "import torch\n"
        "def batches():\n"
        "    found = list(torch.randn(4, 2, 3, 8, 8))\n"
        "    found[1][0, 0, 0, 0] = float('nan')\n"
        "    return found\n"
    )
    said = run(*NET, "--data", "bad_data:batches")
    assert (said.code, "batch 2 has 1 NaN of 384 values" in said.err) == (1, True)
    assert not pathlib.Path("prunec-out").exists()


class Masked(nn.Module):
    """Attention scores with additive masks; a table that is never read; missing values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("causal", torch.full((5, 5), -INF).triu(1))
        self.register_buffer("unused", torch.full((3,), NAN))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x.nan_to_num(0.0)
        scores = self.q(x) @ self.k(x).transpose(-1, -2) + self.causal + mask
        return self.down(torch.relu(self.up(scores.softmax(-1) @ self.v(x))))


def test_masks_of_infinities_and_missing_values_are_honest() -> None:
    def call(hidden: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, mask = torch.randn(2, 5, 8), torch.zeros(2, 1, 5)
        if hidden:
            mask[:, :, -hidden:] = -INF
        if hidden == 1:
            x[0, 1, 2] = NAN
        return x, mask

    data = [call(1), call(0), call(2)]
    result = compiled(Masked().eval(), call(0), calibration=data)
    assert result.model.up.out_features == 8
    with pytest.raises(NonFiniteError, match="calibration batch 1 has 10 infinite of 10 values"):
        compiled(Masked().eval(), call(0), calibration=[call(5)])  # of nothing a softmax is NaN
