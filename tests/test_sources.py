"""What MODEL and --input may be, and what is said when they are something else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
from torch import nn

from prunec.compiler.errors import SourceError
from prunec.compiler.inputs.example_inputs import example_inputs
from prunec.compiler.sources.model import Source, resolve_model
from prunec.compiler.user_code import UserCodeError

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 99,
}
FACTORIES = """
import torch
from torch import nn

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.embedding(input_ids))

def linear(): return nn.Linear(4, 2)
def with_tensor(): return nn.Linear(4, 2), torch.zeros(3, 4)
def with_tuple(): return nn.Bilinear(4, 5, 2), (torch.zeros(3, 4), torch.zeros(3, 5))
def with_dict(): return Words(), {"input_ids": torch.zeros(3, 4, dtype=torch.long)}
def words(): return Words()
def three(): return 3
def broken(): raise KeyError("mine")
"""


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of factories in the working directory, another one for each test."""
    name = f"factories_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def runs(source: Source) -> tuple[int, ...]:
    """The shape of the first output on the source's own arguments."""
    with torch.no_grad():
        out = source.model(*source.args, **source.kwargs)
    return tuple((out if isinstance(out, torch.Tensor) else out[0]).shape)


def save_bert(directory: Path, architecture: str | None = None) -> Path:
    config = transformers.BertConfig(**TINY)
    transformers.BertForSequenceClassification(config).save_pretrained(directory)
    if architecture is not None:
        written = json.loads((directory / "config.json").read_text())
        written["architectures"] = [architecture]
        (directory / "config.json").write_text(json.dumps(written))
    return directory


@pytest.mark.parametrize(
    ("factory", "inputs", "shape"),
    [
        ("linear", ["4"], (2, 2)),
        ("with_tensor", None, (3, 2)),
        ("with_tuple", None, (3, 2)),
        ("with_dict", None, (3, 4, 2)),
        ("with_tensor", ["7x4"], (2, 7, 2)),  # what the user says wins
        ("words", ["6"], (2, 6, 2)),
        ("words", ["ids:5x6", "mask:5x6"], (5, 6, 2)),
        ("Words", ["6"], (2, 6, 2)),  # a class is a factory
    ],
)
def test_factory(
    factories: str, factory: str, inputs: list[str] | None, shape: tuple[int, ...]
) -> None:
    source = resolve_model(f"{factories}:{factory}", input_spec=inputs)
    assert source.kind == "factory"
    assert source.tokenizer is None
    assert not source.model.training
    assert runs(source) == shape


def test_factory_module_is_found_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text(FACTORIES)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.chdir(tmp_path)
    assert resolve_model("only_here:with_tensor").class_name == "torch.nn.modules.linear.Linear"


@pytest.mark.parametrize(
    ("factory", "inputs", "message"),
    [
        ("linear", None, "does not say what it takes"),
        ("linear", ["5"], r"float32 \[2, 5\]"),
        ("linear", ["4*5"], "is not a shape"),
        ("linear", ["0x4"], "is not a shape"),
        ("words", ["pixels:2x6"], "name one of input_ids, attention_mask"),
        ("three", None, "gave int"),
        ("four", None, "name one of Words, linear"),
    ],
)
def test_factory_that_does_not_resolve(
    factories: str, factory: str, inputs: list[str] | None, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        resolve_model(f"{factories}:{factory}", input_spec=inputs)


def test_error_inside_a_factory_names_the_line(factories: str) -> None:
    with pytest.raises(UserCodeError, match=rf"KeyError at {factories}.py:\d+ \('mine'\)") as error:
        resolve_model(f"{factories}:broken")
    assert isinstance(error.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:factory", "no module 'no_such_module'"),
        ("./nothing/here", "is no existing path"),
        ("nothing.pt2", "does not exist"),
        ("nobody/no-such-model", "the hub did not give it"),
        ("timm:no_such_model", "timm"),
        ("torchvision:no_such_model", "torchvision"),
    ],
)
def test_model_that_does_not_resolve(
    spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=message):
        resolve_model(spec)


def test_directory_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"neither config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **TINY}))
    with pytest.raises(SourceError, match="check its config"):
        resolve_model(str(tmp_path))


def test_transformers_directory_gives_the_class_it_names(tmp_path: Path) -> None:
    source = resolve_model(str(save_bert(tmp_path)))
    assert type(source.model) is transformers.BertForSequenceClassification
    assert (source.kind, source.processor) == ("transformers", None)
    assert source.kwargs["input_ids"].shape == source.kwargs["attention_mask"].shape
    assert runs(source) == (2, 2)


def test_unknown_class_falls_back_with_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="names MyBert"):
        source = resolve_model(str(save_bert(tmp_path, "MyBert")))
    assert type(source.model) is transformers.BertModel


def test_missing_weights_are_not_passed_over(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no weights for 6 tensors of BertForMaskedLM"):
        resolve_model(str(save_bert(tmp_path, "BertForMaskedLM")))


def test_exported_program_with_its_own_inputs_or_others(tmp_path: Path) -> None:
    path = tmp_path / "linear.pt2"
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        nn.Linear(4, 2), (torch.zeros(3, 4),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, path)
    assert runs(resolve_model(str(path))) == (3, 2)
    assert runs(resolve_model(str(path), input_spec=["4"], batch=5)) == (5, 2)
    source = resolve_model(str(path))
    assert not source.model.train().eval().training  # torch makes both of them raise
    path.write_bytes(b"not a program")
    with pytest.raises(SourceError, match=r"torch\.export cannot read"):
        resolve_model(str(path))


def test_artifact_is_opened_by_the_given_loader(tmp_path: Path) -> None:
    (tmp_path / "prunec.json").write_text("{}")
    with pytest.raises(SourceError, match=r"compiler\.load"):
        resolve_model(str(tmp_path))
    opened: list[Path] = []

    def load(path: Path) -> nn.Module:
        opened.append(path)
        return nn.Linear(4, 2)

    source = resolve_model(str(tmp_path), input_spec=["4"], load_artifact=load)
    assert (source.kind, opened, runs(source)) == ("artifact", [tmp_path], (2, 2))
    source = resolve_model(str(tmp_path), load_artifact=load)
    assert (source.args, source.kwargs) == ((), {})


WHISPER: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 99,
    "max_source_positions": 30,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
WAV2VEC2 = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 16}
VISION: dict[str, Any] = {**TINY, "image_size": 32, "patch_size": 16}
TEXT = {**TINY, "eos_token_id": 98}
T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}


@pytest.mark.parametrize(
    ("model_type", "options", "expected"),
    [
        ("bert", TINY, {"input_ids": (3, 120), "attention_mask": (3, 120)}),
        ("llama", TINY, {"input_ids": (3, 120), "attention_mask": (3, 120)}),
        (
            "roberta",
            {**TINY, "max_position_embeddings": 40},
            {"input_ids": (3, 38), "attention_mask": (3, 38)},
        ),
        (
            "t5",
            {**T5, "vocab_size": 99},
            {"input_ids": (3, 120), "attention_mask": (3, 120), "decoder_input_ids": (3, 56)},
        ),
        ("vit", VISION, {"pixel_values": (3, 3, 32, 32)}),
        (
            "clip",
            {"text_config": TEXT, "vision_config": VISION},
            {"input_ids": (3, 75), "attention_mask": (3, 75), "pixel_values": (3, 3, 32, 32)},
        ),
        ("whisper", WHISPER, {"input_features": (3, 80, 60), "decoder_input_ids": (3, 56)}),
        ("wav2vec2", {**TINY, **WAV2VEC2}, {"input_values": (3, 23040)}),
    ],
)
def test_inputs_from_a_configuration(
    model_type: str, options: dict[str, object], expected: dict[str, tuple[int, ...]]
) -> None:
    config = transformers.AutoConfig.for_model(model_type, **options)
    model = transformers.AutoModel.from_config(config).train()
    args, kwargs = example_inputs(model, batch=3)
    tensors = {k: tuple(v.shape) for k, v in kwargs.items() if isinstance(v, torch.Tensor)}
    assert (args, tensors) == ((), expected)
    assert kwargs.get("use_cache", False) is False
    assert model.training
    again = example_inputs(model, batch=3)[1]
    assert all(torch.equal(kwargs[name], again[name]) for name in tensors)


def test_ids_are_plain_words_closed_by_the_end_token() -> None:
    config = transformers.LlamaConfig(
        **{**TINY, "vocab_size": 6}, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    ids = example_inputs(transformers.LlamaModel(config))[1]["input_ids"]
    assert set(ids[:, :-1].unique().tolist()) == {3, 4, 5}
    assert ids[:, -1].tolist() == [2, 2]
