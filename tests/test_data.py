"""What DATA may be: files, factories and data sets, into batches the model takes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn

from prunec.compiler.errors import SourceError
from prunec.compiler.sources.data import load_data as read
from prunec.compiler.sources.model import Source


def load_data(spec: str, source: Source, **options: Any) -> list[Any]:
    return list(read(spec, source, **options))


WORDS = "<pad> <unk> <end> a b c d e f g".split()
TEXTS = ["a b c", "a", "d e f g", "b"]


def tokenizer(pad: bool = True) -> transformers.PreTrainedTokenizerFast:
    model = WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    words = Tokenizer(model)
    words.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        eos_token="<end>",
        pad_token="<pad>" if pad else None,
    )


@pytest.fixture(scope="module")
def source() -> Source:
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=len(WORDS),
        id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
        max_position_embeddings=6,
    )
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.ones(2, 4, dtype=torch.long)
    kwargs = {"input_ids": ids, "attention_mask": ids, "use_cache": False}
    return Source(model, (), kwargs, kind="transformers", name="tiny", processor=tokenizer())


def write(directory: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    path = directory / f"rows{suffix}"
    separator = "\t" if suffix == ".tsv" else ","
    lines = {
        ".txt": lambda: [str(row["text"]) + "\n" for row in rows],
        ".jsonl": lambda: [json.dumps(row) for row in rows],
        ".json": lambda: [json.dumps(rows)],
        ".csv": lambda: [
            separator.join(map(str, r)) for r in (rows[0], *(r.values() for r in rows))
        ],
    }
    path.write_text("\n".join(lines[".csv" if suffix == ".tsv" else suffix]()))
    return path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv", ".tsv"])
def test_file_becomes_batches_padded_to_their_longest(
    suffix: str, source: Source, tmp_path: Path
) -> None:
    path = write(tmp_path, suffix, [{"text": text} for text in TEXTS[:3]])
    batches = load_data(str(path), source, batch_size=2)
    assert [b["input_ids"].tolist() for b in batches] == [[[3, 4, 5], [3, 0, 0]], [[6, 7, 8, 9]]]
    assert batches[0]["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    # token_type_ids are not among the inputs the model is run on.
    assert set(batches[0]) == {"input_ids", "attention_mask"}
    with torch.no_grad():
        assert source.model(**batches[0]).logits.shape == (2, 2)


@pytest.mark.parametrize(
    ("labels", "expected", "dtype"),
    [
        ([1, 0], [1, 0], torch.int64),
        ([0.5, 2.0], [0.5, 2.0], torch.float32),
        (["good", "bad"], [1, 0], torch.int64),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_labels_are_kept(
    suffix: str,
    labels: list[Any],
    expected: list[float],
    dtype: torch.dtype,
    source: Source,
    tmp_path: Path,
) -> None:
    rows = [{"text": t, "label": v} for t, v in zip(TEXTS, labels, strict=False)]
    (batch,) = load_data(str(write(tmp_path, suffix, rows)), source)
    assert batch["labels"].tolist() == expected
    assert batch["labels"].dtype == dtype


def test_text_column_is_found_or_named(source: Source, tmp_path: Path) -> None:
    one = write(tmp_path, ".csv", [{"note": "a b", "label": "good"}])
    assert load_data(str(one), source)[0]["input_ids"].tolist() == [[3, 4]]
    two = write(tmp_path, ".jsonl", [{"left": "a", "right": "b"}])
    assert load_data(f"{two}#right", source)[0]["input_ids"].tolist() == [[4]]
    with pytest.raises(SourceError, match=r"not clear .*#COLUMN.*one of left, right"):
        load_data(str(two), source)
    with pytest.raises(SourceError, match="no column 'middle': take one of left, right"):
        load_data(f"{two}#middle", source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "\n\n", "holds no samples"),
        ("broken.jsonl", '{"text": "a"}\n\n{"text": b}', r"broken\.jsonl, line 3, is no JSON"),
        ("latin.csv", "text\n\udce9", r"not \.csv in UTF-8"),
        ("commas.csv", "text,label\na, b,1\n", "line 2, has more fields"),
        ("none.jsonl", '{"text": "a"}\n{"text": "b", "label": 1}', "entry 1 .* under 'label'"),
        ("range.csv", "text,label\na,1\nb,2\n", "entry 2 .* label 2 under 'label', .* 0 to 1"),
        ("half.jsonl", '{"text": "a", "label": NaN}', "neither a number"),
        (
            "pair.jsonl",
            '{"sentence1": "a", "sentence2": "b"}\n{"sentence1": "a", "sentence2": null}',
            "entry 2 .* nothing under 'sentence2'",
        ),
        ("list.jsonl", "[1]", "entry 1 is no JSON object"),
        ("object.json", "{}", "not a JSON list"),
        ("gap.jsonl", '{"text": "a"}\n{"other": "b"}', "entry 2 .* nothing under 'text'"),
        ("labels.csv", "text,label\na,ugly\n", r"model's labels \(bad, good\)"),
        ("words.bin", "a b", "no known suffix"),
    ],
)
def test_file_that_cannot_be_used(
    name: str, content: str, message: str, source: Source, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content, errors="surrogateescape")
    with pytest.raises(SourceError, match=message):
        load_data(str(tmp_path / name), source)


def test_absent_file_is_not_looked_for_as_a_data_set(source: Source, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        load_data(str(tmp_path / "absent.txt"), source)


def test_long_texts_are_cut_to_the_positions_there_are(source: Source, tmp_path: Path) -> None:
    path = write(tmp_path, ".txt", [{"text": "a " * 50}])
    assert load_data(str(path), source)[0]["input_ids"].shape == (1, 6)


def test_padding_beyond_the_positions_is_refused(source: Source, tmp_path: Path) -> None:
    path = str(write(tmp_path, ".txt", [{"text": "a " * 50}]))
    assert load_data(path, source, pad_to=6, max_length=4)[0]["attention_mask"].sum() == 4
    with pytest.raises(SourceError, match=r"to 7 tokens .* at most 6"):
        load_data(path, source, pad_to=7)


def test_positions_kept_for_padding_are_none_of_a_text(tmp_path: Path) -> None:
    config = transformers.RobertaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        vocab_size=len(WORDS), max_position_embeddings=8, pad_token_id=0,
    )  # fmt: skip
    ids = {"input_ids": torch.ones(2, 4, dtype=torch.long)}
    model = transformers.RobertaModel(config).eval()
    roberta = Source(model, (), ids, "transformers", "roberta", tokenizer())
    (batch,) = load_data(str(write(tmp_path, ".txt", [{"text": "a " * 50}])), roberta)
    assert batch["input_ids"].shape == (1, 7)  # of the 8 one is the padding token's
    model(**batch)


def test_tokenizer_without_padding_borrows_the_end_token(tmp_path: Path) -> None:
    config = transformers.GPT2Config(
        n_embd=32, n_layer=1, n_head=4, vocab_size=10, bos_token_id=2, eos_token_id=2
    )
    ids = torch.ones(2, 4, dtype=torch.long)
    unpadded = tokenizer(pad=False)
    source = Source(
        transformers.GPT2Model(config),
        (),
        {"input_ids": ids, "attention_mask": ids},
        kind="transformers",
        name="tiny",
        processor=unpadded,
    )
    path = write(tmp_path, ".txt", [{"text": t} for t in TEXTS[:2]])
    (batch,) = load_data(str(path), source)
    assert batch["input_ids"].tolist() == [[3, 4, 5], [3, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert unpadded.pad_token is None


def test_decoder_reads_the_text_one_step_late(tmp_path: Path) -> None:
    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, vocab_size=10, pad_token_id=0
    )
    ids = torch.ones(2, 4, dtype=torch.long)
    kwargs = {"input_ids": ids, "attention_mask": ids, "decoder_input_ids": ids}
    model = transformers.T5Model(config)
    source = Source(model, (), kwargs, kind="transformers", name="t5", processor=tokenizer())
    (batch,) = load_data(str(write(tmp_path, ".txt", [{"text": "a b c"}])), source)
    assert batch["decoder_input_ids"].tolist() == [[0, 3, 4]]


def test_texts_need_a_tokenizer(tmp_path: Path) -> None:
    source = Source(nn.Linear(4, 2), (torch.zeros(2, 4),), {}, kind="factory", name="m:linear")
    with pytest.raises(SourceError, match="m:linear has no tokenizer"):
        load_data(str(write(tmp_path, ".txt", [{"text": "a"}])), source)


FACTORIES = """
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
images, labels = torch.randn(10, 4), torch.arange(10)
def dataset(): return TensorDataset(images, labels)
def loader(): return DataLoader(dataset(), batch_size=4)
def tensors(): return list(images.split(3))
def texts(split): return ["a b", split]
def nothing(): return []
def once(): return iter(tensors())
class Endless(IterableDataset):
    def __iter__(self):
        while True: yield torch.zeros(4)
def endless(): return DataLoader(Endless(), batch_size=4)
def unbatched(): return Endless()
def shuffled(): return DataLoader(TensorDataset(torch.arange(64)), batch_size=64, shuffle=True)
def number(): return 3
"""


def test_factories(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data_factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(name: str, **options: Any) -> list[Any]:
        return load_data(f"data_factories:{name}", source, **options)

    assert [len(labels) for _, labels in load("dataset", batch_size=6)] == [6, 4]
    assert [len(labels) for _, labels in load("loader", max_samples=5)] == [4, 4]
    assert [len(batch) for batch in load("tensors")] == [3, 3, 3, 1]
    assert load("texts", split="c")[0]["input_ids"].tolist() == [[3, 4], [5, 0]]
    with pytest.raises(SourceError, match="gave no batches"):
        load("nothing")
    with pytest.raises(SourceError, match="gave int"):
        load("number")


def test_batches_of_a_factory_are_made_anew_each_time(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "anew_factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(name: str, **options: Any) -> Any:
        return read(f"anew_factories:{name}", source, **options)

    def first(batches: Any) -> list[int]:
        return next(iter(batches))[0].tolist()

    for options in ({}, {"max_samples": 64}):
        loader = load("shuffled", **options)
        assert first(loader) != first(loader)
        assert len(loader) == 1
    labels = torch.cat([own for _, own in load("dataset", shuffle=True)]).tolist()
    assert sorted(labels) == list(range(10)) != labels
    drawn = load("dataset", max_samples=3)
    assert [own.tolist() for _, own in drawn] == [own.tolist() for _, own in drawn]
    assert next(iter(load("endless"))).shape == (4, 4)
    assert next(iter(load("unbatched", batch_size=3))).shape == (3, 4)
    some = load("endless", max_samples=9)
    assert [len(batch) for batch in some] == [4, 4, 4]
    assert len(some) == 3
    once = load("once")
    assert len(list(once)) == len(list(once)) == 4


def test_a_factory_gives_a_data_set_of_rows(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets", reason="needs prunec[data]")
    (tmp_path / "row_factories.py").write_text(
        "import datasets\n"
        "def one(rows=4):\n"
        "    columns = {'text': ['a b'] * rows, 'label': [1] * rows}\n"
        "    return datasets.Dataset.from_dict(columns)\n"
        "def splits(split): return datasets.DatasetDict({'dev': one(2), 'none': one(0)})\n"
        "def streamed(): return one().to_iterable_dataset()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (batch,) = load_data("row_factories:one", source, max_samples=3)
    assert (batch["input_ids"].tolist(), batch["labels"].tolist()) == ([[3, 4]] * 3, [1] * 3)
    (batch,) = load_data("row_factories:splits", source, split="dev")
    assert len(batch["labels"]) == 2
    with pytest.raises(SourceError, match="without rows"):
        read("row_factories:splits", source, split="none")
    with pytest.raises(SourceError, match="no split 'test': it has dev, none"):
        read("row_factories:splits", source, split="test")
    (batch,) = load_data("row_factories:streamed", source, max_samples=3)
    assert (batch["input_ids"].tolist(), batch["labels"].tolist()) == ([[3, 4]] * 3, [1] * 3)
    with pytest.raises(SourceError, match=r"streamed, without a length.*--max-samples"):
        read("row_factories:streamed", source)


@pytest.mark.parametrize("option", ["batch_size", "max_samples", "max_length", "pad_to"])
def test_sizes_below_1_are_refused(option: str, source: Source, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"--{option.replace('_', '-')} 0 leaves nothing"):
        load_data(str(write(tmp_path, ".txt", [{"text": "a"}])), source, **{option: 0})


def test_an_entry_is_named_by_its_place_in_the_file(source: Source, tmp_path: Path) -> None:
    path = write(tmp_path, ".jsonl", [{"text": "a", "label": 7 if i else 0} for i in range(9)])
    with pytest.raises(SourceError, match="entry 7 of"):  # the first that seed 0 draws
        read(str(path), source, max_samples=2)


def test_data_set_by_its_id(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, configuration: str | None, split: str) -> list[dict[str, Any]]:
        asked.append((name, configuration, split))
        return [{"idx": 7, "sentence": "a b", "label": 1}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    (batch,) = load_data("owner/glue@sst2#sentence", source, split="validation")
    assert asked == [("owner/glue", "sst2", "validation")]
    assert (batch["input_ids"].tolist(), batch["labels"].tolist()) == ([[3, 4]], [1])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceError, match=r"pip install 'prunec\[data\]'"):
        load_data("owner/glue", source)


def test_a_data_set_names_its_numbers_of_classes(source: Source, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs prunec[data]")
    rows = {"text": ["a", "b", "c"], "label": [0, 1, 1]}

    def labels(names: list[str]) -> list[int]:
        own = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
        )
        path = tmp_path / f"{names[0]}.parquet"
        datasets.Dataset.from_dict(rows, features=own).to_parquet(str(path))
        return load_data(str(path), source)[0]["labels"].tolist()

    assert labels(["GOOD", "BAD"]) == [1, 0, 0]  # the model's own order is bad, good
    assert labels(["no", "yes"]) == [0, 1, 1]  # other names: the numbers stand


def test_text_that_is_none_and_tables_of_one_column_are_refused(
    source: Source, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=r"entry 1 of .* has \"\{'en': 'a'\}\".*no text"):
        load_data(f"{write(tmp_path, '.jsonl', [{'text': {'en': 'a'}}])}", source)
    for suffix, text in ((".csv", "text;label\na;1\n"), (".tsv", "text,label\na,1\n")):
        path = tmp_path / f"table{suffix}"
        path.write_text(text)
        with pytest.raises(SourceError, match=r"has one column, 'text[;,]label'"):
            load_data(str(path), source)
    upper = tmp_path / "table.TSV"
    upper.write_text("text\tlabel\na b\t1e0\n")
    (batch,) = load_data(str(upper), source)
    assert (batch["input_ids"].tolist(), batch["labels"].tolist()) == ([[3, 4]], [1])
