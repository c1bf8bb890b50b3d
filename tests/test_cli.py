"""The command line: what each command prints and writes, and how it fails."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tiny_models import IMAGES, comparison, parameters, small_cnn, tiny_bert
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from prunec import compiler
from prunec.compiler.__main__ import main
from prunec.compiler.onnx_files.export import export_onnx
from prunec.compiler.user_code import UserCodeError

FACTORIES = """
import torch
from tiny_models import IMAGES, TwoOutputs, small_cnn

def net(): return small_cnn(), IMAGES
def shapeless(): return small_cnn()
def batches(): return list(torch.randn(4, 2, 3, 8, 8))
def two():
    torch.manual_seed(0)
    return TwoOutputs(), torch.randn(2, 8)
def score(model): return 1.0 if model.first.out_channels == 16 else 0.5
def broken(): raise KeyError("mine")
def stuck(): raise KeyboardInterrupt
number = 3
"""
WORDS = ["[PAD]", "[UNK]", "the", "cat", "sat", "on", "a", "mat", "dog", "ran"]


@dataclasses.dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """The command in this process, in an empty directory that holds the factories."""
    name = "factories_of_" + "".join(c if c.isalnum() else "_" for c in tmp_path.name)
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> Said:
        words = [a.replace("@", f"{name}:") if a.startswith("@") else a for a in arguments]
        code = 0
        capsys.readouterr()
        try:
            main(words)
        except SystemExit as left:
            code = int(left.code or 0)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return call


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings of a few rounds."""
    from prunec.compiler.measure import model_timing, onnx_timing

    real = model_timing.compare

    def compare(*calls: Any, **options: Any) -> Any:
        options |= {"min_rounds": 4, "max_seconds": 0.01, "warmup_seconds": 0.01}
        return real(*calls, **options)

    monkeypatch.setattr(model_timing, "compare", compare)
    monkeypatch.setattr(onnx_timing, "compare", compare)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A transformers directory: a tiny BERT with a tokenizer of ten words."""
    place = tmp_path_factory.mktemp("bert")
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(place)
    tiny_bert().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    result = compiler.compile(
        small_cnn(), (IMAGES,), target=compiler.Target(width=0.5), measure=False
    )
    return result.save(tmp_path_factory.mktemp("artifact") / "small")


HALF = ("--target", "width=0.5", "--no-measure")


# explain


def test_explain_lists_dimensions(run: Run) -> None:
    said = run("explain", "@net")
    assert (said.code, said.err) == (0, "")
    assert "prunable dimensions: 2" in said.out
    assert "first:channel" in said.out
    assert "because: model output" in said.out
    assert "norm.running_var[0]" not in said.out
    assert "norm.running_var[0]" in run("explain", "@net", "--members").out


def test_explain_prints_the_graph_with_its_terms(run: Run) -> None:
    said = run("explain", "@net", "--graph")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("inputs\n  %0: f32[")
    assert "first.weight: f32[first:channel(" in said.out


def test_explain_takes_shapes_and_outputs(run: Run) -> None:
    assert "prunable dimensions: 2" in run("explain", "@shapeless", "--input", "3x8x8").out
    assert "prunable dimensions: 0" in run("explain", "@two").out
    assert "prunable dimensions: 1" in run("explain", "@two", "--output", "logits").out
    both = run("explain", "@two", "--output", "logits", "--output", "features")
    assert "prunable dimensions: 0" in both.out


def test_explain_reads_an_artifact_with_the_inputs_it_was_made_with(
    run: Run, artifact: pathlib.Path
) -> None:
    said = run("explain", str(artifact))
    assert said.code == 0, said.err
    assert "prunable dimensions: 2" in said.out


# compile


def test_compile_writes_an_artifact_and_prints_the_tables(run: Run) -> None:
    said = run("compile", "@net", *HALF, "--out", "small")
    assert (said.code, said.err) == (0, "")
    assert "magnitude-score" in said.out
    assert "4,085" in said.out
    assert "zero mask" in said.out
    assert "artifact: small" in said.out
    loaded = compiler.load("small", model=small_cnn())
    assert parameters(loaded) < 0.5 * 4085


def test_compile_trains_and_proves_on_a_factory_of_batches(run: Run) -> None:
    options = ("--steps", "3", "--learning-rate", "0.001", "--round-to", "8")
    said = run("compile", "@net", *HALF, "--data", "@batches", *options, "--out", "small")
    assert said.code == 0, said.err
    report = json.loads(pathlib.Path("small/report.json").read_text())
    distill = report["passes"][-1]
    assert distill["details"]["steps"] == 3
    assert distill["options"]["learning_rate"] == 0.001
    assert next(c for c in report["checks"] if c["name"] == "zero mask")["inputs"] == 5
    assert {d["after"] for d in report["dimensions"] if d["state"] == "pruned"} == {8, 16}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_compile_takes_texts_for_a_model_with_a_tokenizer(
    run: Run, bert: pathlib.Path, suffix: str
) -> None:
    texts = ["the cat sat on a mat", "a dog ran", "the dog sat", "the cat ran on"]
    if suffix == "jsonl":
        rows = [json.dumps({"text": t, "label": i % 2}) for i, t in enumerate(texts)]
    else:
        rows = texts
    pathlib.Path(f"texts.{suffix}").write_text("\n".join(rows))
    data = ("--data", f"texts.{suffix}", "--batch-size", "2", "--steps", "2")
    said = run("compile", str(bert), "--target", "params=0.6", "--no-measure", *data)
    assert said.code == 0, said.err
    report = json.loads(pathlib.Path("prunec-out/report.json").read_text())
    labels = report["passes"][-1]["details"]["labels"]
    assert labels == ("used" if suffix == "jsonl" else "none")
    assert pathlib.Path("prunec-out/tokenizer.json").is_file()
    loaded: Any = compiler.load("prunec-out")
    assert type(loaded).__name__ == "BertForSequenceClassification"
    assert parameters(loaded) <= 0.6 * parameters(tiny_bert())
    assert transformers.AutoTokenizer.from_pretrained("prunec-out")("a cat").input_ids == [6, 3]


def test_steps_0_repairs_and_proves_on_the_data_and_does_not_train(run: Run) -> None:
    said = run("compile", "@net", *HALF, "--data", "@batches", "--steps", "0", "--out", "small")
    assert said.code == 0, said.err
    report = json.loads(pathlib.Path("small/report.json").read_text())
    names = [step["name"] for step in report["passes"]]
    assert names[-3:] == ["sparse-to-dense", "reconstruct", "recalibrate-batch-norm"]
    assert next(c for c in report["checks"] if c["name"] == "zero mask")["inputs"] == 5


def test_dry_run_counts_and_writes_nothing(run: Run) -> None:
    before = set(pathlib.Path().iterdir())
    said = run("compile", "@net", "--target", "params=0.5", "--dry-run", "--out", "small")
    assert said.code == 0, said.err
    assert "first:channel" in said.out
    assert "nothing was rewritten or written" in said.out
    assert {p for p in pathlib.Path().iterdir() if p.suffix != ".py"} <= before | {
        pathlib.Path("__pycache__")
    }


def test_options_that_a_dry_run_does_not_read_are_named(run: Run) -> None:
    said = run("compile", "@net", "--target", "params=0.5", "--dry-run", "--rounds", "2")
    assert said.code == 0, said.err
    assert "note: with --dry-run, nothing comes of --rounds" in said.out
    said = run("compile", "@net", "--sweep", "params=0.7", "--emit", "onnx", "--steps", "3")
    assert "note: with --sweep, nothing comes of --emit\n" in said.out
    assert "a sweep trains nothing; --steps will count when" in said.out
    said = run("compile", "@net", "--sweep", "params=0.7", "--steps", "0")
    assert "note" not in said.out


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_emit_writes_onnx_too_and_times_it(run: Run) -> None:
    said = run("compile", "@net", "--target", "width=0.5", "--emit", "torch,onnx", "--out", "both")
    assert said.code == 0, said.err
    assert pathlib.Path("both/model.onnx").stat().st_size > 1000
    assert "ONNX == module" in said.out
    report = json.loads(pathlib.Path("both/report.json").read_text())
    runs = [(c["runtime"], c["batch"]) for c in report["latency"]]
    assert runs == [("torch", 1), ("torch", 32), ("onnxruntime", 1), ("onnxruntime", 32)]
    again = run("verify", "both")
    assert again.code == 0, again.err
    assert "ONNX == graph" in again.out


def test_recipe_options_hold_where_the_command_says_nothing(run: Run) -> None:
    pathlib.Path("r.toml").write_text(
        '[[pass]]\nuse = "magnitude-score"\n[[pass]]\nuse = "allocate-widths"\nround_to = 8\n'
        '[[pass]]\nuse = "prune-channels"\n[[pass]]\nuse = "sparse-to-dense"\n'
    )
    said = run("compile", "@net", "--recipe", "r.toml", *HALF, "--out", "a")
    assert said.code == 0, said.err
    report = json.loads(pathlib.Path("a/report.json").read_text())
    assert {d["after"] for d in report["dimensions"] if d["state"] == "pruned"} == {8, 16}


def test_excluded_dimensions_stay(run: Run) -> None:
    said = run("compile", "@net", *HALF, "--exclude", "first*", "--out", "a")
    assert said.code == 0, said.err
    report = json.loads(pathlib.Path("a/report.json").read_text())
    assert [d["name"] for d in report["dimensions"] if d["state"] == "pruned"] == ["second:channel"]


def test_evaluate_below_the_floor_writes_nothing(run: Run) -> None:
    said = run("compile", "@net", *HALF, "--evaluate", "@score", "--out", "a")
    assert said.code == 1
    assert "fell from 1.0000 to 0.5000" in said.err
    assert not pathlib.Path("a").exists()
    assert run("compile", "@net", *HALF, "--evaluate", "@score", "--floor", "0.4").code == 0


# verify


def test_verify_says_what_was_not_proved(run: Run, artifact: pathlib.Path) -> None:
    said = run("verify", str(artifact))
    assert (said.code, said.err) == (0, "")
    assert "checksums" in said.out
    assert "not re-proved without --original" in said.out
    assert said.out.rstrip().endswith("verified")


def test_verify_with_the_original_proves_everything(run: Run, artifact: pathlib.Path) -> None:
    said = run("verify", str(artifact), "--original", "@net")
    assert said.code == 0, said.err
    for name in ("zero mask", "permutation", "stored weights == cut weights"):
        assert name in said.out
    assert "not re-proved" not in said.out


def test_verify_fails_on_another_original(run: Run, artifact: pathlib.Path) -> None:
    pathlib.Path("other.py").write_text(
        "from tiny_models import IMAGES, SmallCnn\n"
        "def net():\n    model = SmallCnn()\n    model.head.weight.data += 1\n"
        "    return model, IMAGES\n"
    )
    said = run("verify", str(artifact), "--original", "other:net")
    assert said.code == 1
    assert "stored weights == cut weights failed" in said.err
    assert "FAILED" in said.out


# bench


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_bench_times_two_models(run: Run, artifact: pathlib.Path) -> None:
    said = run("bench", "@net", str(artifact), "--batch", "1", "--batch", "4")
    assert said.code == 0, said.err
    rows = [line for line in said.out.splitlines() if "torch" in line]
    assert len(rows) == 2
    assert all(row.count("x") == 1 for row in rows)


@pytest.mark.usefixtures("quick")
def test_bench_times_two_onnx_files(run: Run, tmp_path: pathlib.Path) -> None:
    export_onnx(nn.Linear(4, 3), (torch.randn(2, 4),), {}, tmp_path / "a.onnx")
    shutil.copy(tmp_path / "a.onnx", tmp_path / "b.onnx")
    said = run("bench", "a.onnx", "b.onnx", "--batch", "2")
    assert said.code == 0, said.err
    assert "onnxruntime" in said.out
    assert run("bench", "a.onnx", "@net").code == 1


def test_bench_passes_on_runtime_and_default_batches(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def timed(*_: Any, runtime: str, batch: int, **__: Any) -> Any:
        seen.append((runtime, batch))
        return comparison(2.0, runtime, batch)

    monkeypatch.setattr("prunec.compiler.commands.bench.compare_modules", timed)
    said = run("bench", "@net", "@net", "--runtime", "compile")
    assert seen == [("compile", 1), ("compile", 32)]
    assert said.out.count("2.00x") == 2


# Failures.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("explain", "no/such/thing.pt"), "is no existing path"),
        (("explain", "@absent"), "has no 'absent'"),
        (("explain", "@net", "--output", "logits"), "output 'logits' does not exist"),
        (("explain", "@shapeless"), "--input"),
        (("compile", "@net", "--target", "half"), "target 'half' is not understood"),
        (("compile", "@net", "--target", "params=0.001", "--no-measure"), "cannot be met"),
        (("compile", "@net", *HALF, "--emit", "tflite"), "--emit takes torch, onnx"),
        (("compile", "@net", *HALF, "--recipe", "absent.toml"), "cannot be read"),
        (("compile", "@net", *HALF, "--data", "absent.txt"), "absent.txt does not exist"),
        (("compile", "@net", *HALF, "--evaluate", "@number"), "is not callable"),
        (("compile", "@net", *HALF, "--out", "."), "is no prunec artifact"),
        (("bench", "a.onnx", "@net"), "like with like"),
        (("verify", "absent"), "absent is no prunec artifact"),
        (("explain", "@broken"), "broken raised KeyError at "),
    ],
)
def test_error_is_one_sentence_on_stderr(
    run: Run, arguments: tuple[str, ...], message: str
) -> None:
    said = run(*arguments)
    assert said.code == 1
    assert said.err.startswith("prunec: ")
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert "Traceback" not in said.err + said.out
    assert not pathlib.Path("prunec-out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compile", "@net"), "--target"),
        (("explain",), "MODEL"),
        (("explain", "@net", "--colour"), "--colour"),
        (("squash", "@net"), "squash"),
        (("compile", "@net", "--target", "width=0.5", "--floor", "high"), "--floor"),
        (("compile", "@net", "--target", "width=0.5", "--floor", "97"), "--floor"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, arguments: tuple[str, ...], message: str) -> None:
    said = run(*arguments)
    assert said.code == 2
    assert message in said.err
    assert "Traceback" not in said.err


def test_refused_directory_is_told_before_anything_is_compiled(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr("prunec.compiler.commands.compile.compile", never)
    said = run("compile", "@net", *HALF, "--out", ".")
    assert (said.code, "is no prunec artifact" in said.err) == (1, True)


def test_debug_shows_where_an_error_comes_from(run: Run) -> None:
    with pytest.raises(UserCodeError, match="mine"):  # a traceback goes on to its cause
        run("--debug", "explain", "@broken")
    assert run("explain", "@broken").code == 1  # the option holds for one call


def test_interruption_is_no_traceback(run: Run) -> None:
    said = run("explain", "@stuck")
    assert said.code == 130
    assert said.err.strip() == "prunec: interrupted; nothing was written"


def test_help_lists_the_commands() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "prunec.compiler", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    for command in ("compile", "explain", "bench", "verify"):
        assert f" {command} " in said.stdout


def test_options_are_named_as_in_the_readme(run: Run) -> None:
    helped = run("compile", "--help")
    assert helped.code == 0
    readme = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
    for option in ("--output", "--data", "--recipe", "--emit", "--evaluate", "--dry-run"):
        assert option in readme
        assert option in helped.out
    assert "--outputs" not in readme


def test_no_arguments_show_the_help(run: Run) -> None:
    said = run()
    assert "compile" in said.out + said.err
    assert "Traceback" not in said.err


def test_torch_is_left_as_it_was(run: Run) -> None:
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    run("explain", "@net")
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, grad)


def test_columns_splits_rounds_and_a_metric_from_the_command_line(
    run: Run, bert: pathlib.Path
) -> None:
    texts = ["the cat sat on a mat", "a dog ran", "the dog sat", "the cat ran on"] * 3
    lines = [f"{i % 2},{t}" for i, t in enumerate(texts)]
    for split in ("train", "test"):
        path = pathlib.Path("rows") / f"{split}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["grade,note", *lines]))
    columns = ("--column", "label=grade", "--column", "text=note", "--eval-split", "test")
    steps = ("--steps", "2", "--batch-size", "4", "--rounds", "2", "--floor", "0")
    said = run(
        "compile", str(bert), "--target", "params=0.6", "--no-measure", "--data", "rows",
        *columns, *steps, "--max-samples", "8",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "accuracy is of 12 samples" in said.out  # not the 8 that are trained on
    report = json.loads(pathlib.Path("prunec-out/report.json").read_text())
    assert set(report["quality"]) == {"accuracy"}
    names = [step["name"] for step in report["passes"]]
    assert names.count("distill") == 2
    assert "accuracy" in said.out
    given = ("--data", "rows", *columns[:2], "--dry-run")  # the text is the other column of strings
    said = run("compile", str(bert), "--target", "params=0.6", *given)
    assert said.code == 0, said.err
    said = run("compile", str(bert), "--target", "params=0.6", "--data", "rows", "--column", "x")
    assert (said.code, "ROLE=COLUMN" in said.err) == (1, True)
    said = run("compile", str(bert), "--target", "params=0.6", "--eval-split", "test")
    assert (said.code, "a split of --data" in said.err) == (1, True)
