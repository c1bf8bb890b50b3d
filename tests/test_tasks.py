"""What each task reads: pairs, words, targets, hidden tokens, images; splits; the task's metric."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_data import WORDS, load_data, tokenizer
from torch import Tensor, nn

from prunec import compiler
from prunec.compiler.capture.batches import split_batch, unlabelled
from prunec.compiler.errors import SourceError
from prunec.compiler.sources.data import load_data as read
from prunec.compiler.sources.evaluation import metric_for
from prunec.compiler.sources.model import Source
from prunec.compiler.sources.tasks import infer_task

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 12,
}


def words(mask: bool = False) -> Any:
    made = tokenizer()
    if mask:
        made.add_special_tokens({"mask_token": "<mask>"})
    return made


def text_source(cls: Any, mask: bool = False, **options: Any) -> Source:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(WORDS) + mask, **SIZES, **options)
    ids = torch.ones(2, 4, dtype=torch.long)
    kwargs = {"input_ids": ids, "attention_mask": ids}
    return Source(cls(config).eval(), (), kwargs, "transformers", "tiny", words(mask))


def llama() -> Source:
    config = transformers.LlamaConfig(vocab_size=len(WORDS), num_key_value_heads=2, **SIZES)
    ids = torch.ones(2, 4, dtype=torch.long)
    model = transformers.LlamaForCausalLM(config).eval()
    kwargs = {"input_ids": ids, "attention_mask": ids}
    return Source(model, (), kwargs, "transformers", "llama", words())


def t5() -> Source:
    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, vocab_size=len(WORDS),
        pad_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    ids = torch.ones(2, 4, dtype=torch.long)
    kwargs = {"input_ids": ids, "attention_mask": ids, "decoder_input_ids": ids}
    model = transformers.T5ForConditionalGeneration(config).eval()
    return Source(model, (), kwargs, "transformers", "t5", words())


def written(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return str(folder / name)


@pytest.mark.parametrize(
    ("cls", "task"),
    [
        (transformers.BertForSequenceClassification, "text-classification"),
        (transformers.BertForTokenClassification, "token-classification"),
        (transformers.BertForQuestionAnswering, "question-answering"),
        (transformers.BertForMaskedLM, "fill-mask"),
        (transformers.BertLMHeadModel, "text-generation"),
        (transformers.BertModel, "feature-extraction"),
    ],
)
def test_the_class_says_what_a_model_is_for(cls: Any, task: str) -> None:
    assert infer_task(text_source(cls)).name == task
    assert infer_task(t5()).name == "text2text-generation"
    image = Source(nn.Conv2d(3, 2, 3), (torch.randn(2, 3, 8, 8),), {}, "factory", "m:f")
    assert infer_task(image).name == "image-classification"


def test_pairs_of_texts_are_read_together(tmp_path: Path) -> None:
    source = text_source(transformers.BertForSequenceClassification)
    row = {"premise": "a b", "hypothesis": "c", "idx": 3, "label": 1}
    (batch,) = load_data(written(tmp_path, [row]), source)
    assert batch["input_ids"].tolist() == [[3, 4, 5]]
    assert batch["labels"].tolist() == [1]
    alone = written(tmp_path, [{"sentence": "a b", "context": "c", "label": 0}], "alone.jsonl")
    assert load_data(alone, source)[0]["input_ids"].tolist() == [[3, 4]]
    named = load_data(alone, source, columns={"text": "context"})
    assert named[0]["input_ids"].tolist() == [[5]]
    answers = text_source(transformers.BertForQuestionAnswering)
    asked = written(tmp_path, [{"question": "a", "context": "d e"}], "asked.jsonl")
    assert load_data(asked, answers)[0]["input_ids"].tolist() == [[3, 6, 7]]


def test_token_classes_follow_their_words(tmp_path: Path) -> None:
    names = {"label2id": {"O": 0, "X": 1}, "id2label": {0: "O", 1: "X"}}
    source = text_source(transformers.BertForTokenClassification, **names)
    rows = [{"tokens": ["a", "b", "c"], "ner_tags": ["O", "X", "O"]}]
    rows += [{"tokens": ["d"], "ner_tags": ["X"]}]
    (batch,) = load_data(written(tmp_path, rows), source)
    assert batch["input_ids"].tolist() == [[3, 4, 5], [6, 0, 0]]
    assert batch["labels"].tolist() == [[0, 1, 0], [1, -100, -100]]
    found = source.model(**{k: v for k, v in batch.items() if k != "labels"}).logits.argmax(-1)
    right = (found == batch["labels"])[batch["labels"] >= 0].double().mean().item()
    data = read(written(tmp_path, rows), source)
    metric = metric_for("token-classification", data, source.model)
    assert (metric.name, metric(source.model)) == ("accuracy", pytest.approx(right))


def test_words_and_their_classes_are_as_many(tmp_path: Path) -> None:
    source = text_source(transformers.BertForTokenClassification, num_labels=3)
    for tokens, tags, message in (
        ("a b", "1 1", "entry 1 .* 'a b' under 'tokens', where a list of words is read"),
        (["a", "b"], [1], "entry 1 .* has 1 labels for 2 words"),
        (["a"], [1, 1], "entry 1 .* has 2 labels for 1 words"),
        (["a"], 1, "entry 1 .* has one label for 1 words"),
        (["a", "b"], [1, 3], "entry 1 .* label 3 under 'ner_tags', .* 0 to 2"),
    ):
        with pytest.raises(SourceError, match=message):
            read(written(tmp_path, [{"tokens": tokens, "ner_tags": tags}]), source)


def test_a_question_leaves_room_for_its_text(tmp_path: Path) -> None:
    source = text_source(transformers.BertForQuestionAnswering)
    rows = [{"question": "a", "context": "d"}, {"question": "a b c", "context": "d e"}]
    assert load_data(written(tmp_path, rows), source, max_length=4)[0]["input_ids"].shape == (2, 4)
    with pytest.raises(SourceError, match=r"question of entry 2 of .* has 3 tokens, .* at most 3"):
        read(written(tmp_path, rows), source, max_length=3)


def test_causal_models_learn_their_own_texts(tmp_path: Path) -> None:
    source = llama()
    (batch,) = load_data(written(tmp_path, [{"text": "a b c"}, {"text": "d"}]), source)
    assert batch["labels"].tolist() == [[3, 4, 5], [6, -100, -100]]
    data = read(written(tmp_path, [{"text": "a b c"}]), source)
    metric = metric_for("text-generation", data, source.model)
    ids = torch.tensor([[3, 4, 5]])
    loss = source.model(input_ids=ids, labels=ids).loss.item()
    assert metric.name == "log-likelihood"
    assert metric(source.model) == pytest.approx(-loss, rel=1e-4)


def test_masked_models_read_texts_with_hidden_tokens(tmp_path: Path) -> None:
    source = text_source(transformers.BertForMaskedLM, mask=True)
    path = written(tmp_path, [{"text": "a b c d e f g a b c"} for _ in range(40)])
    (batch,) = load_data(path, source, batch_size=40)
    hidden = batch["labels"] != -100
    assert 0.05 < hidden.float().mean() < 0.3
    masked = batch["input_ids"] == len(WORDS)
    assert masked.any()
    assert not (masked & ~hidden).any()


def test_a_decoder_is_given_its_target_one_step_late(tmp_path: Path) -> None:
    source = t5()
    (batch,) = load_data(written(tmp_path, [{"text": "a b", "summary": "c d e"}]), source)
    assert batch["labels"].tolist() == [[5, 6, 7]]
    assert batch["decoder_input_ids"].tolist() == [[0, 5, 6]]
    assert batch["input_ids"].tolist() == [[3, 4]]


def test_columns_that_do_not_exist_are_named(tmp_path: Path) -> None:
    source = text_source(transformers.BertForSequenceClassification)
    path = written(tmp_path, [{"note": "a", "stars": 1}])
    (batch,) = load_data(path, source, columns={"label": "stars"})
    assert batch["labels"].tolist() == [1]
    with pytest.raises(SourceError, match="no column 'grade': take one of note, stars"):
        read(path, source, columns={"label": "grade"})
    with pytest.raises(SourceError, match="a column is named for one of text"):
        read(path, source, columns={"mood": "stars"})
    with pytest.raises(SourceError, match="no task 'sorting': name one of"):
        read(path, source, task="sorting")
    with pytest.raises(SourceError, match=r"tokens column .* is not clear"):
        read(path, source, task="token-classification")


def test_texts_are_cut_and_padded_as_asked(tmp_path: Path) -> None:
    path = written(tmp_path, [{"text": "a b c d e"}, {"text": "a"}])
    for source in (text_source(transformers.BertModel), llama()):
        (batch,) = load_data(path, source, max_length=3)
        assert batch["input_ids"].shape == (2, 3)
        for part in load_data(path, source, batch_size=1, pad_to=8):
            assert part["input_ids"].shape == (1, 8)
            assert part["attention_mask"].sum() in (1, 5)


def test_samples_are_drawn_at_random_and_shuffled_when_asked(tmp_path: Path) -> None:
    source = text_source(transformers.BertModel)
    path = written(tmp_path, [{"text": " ".join("a" * (i + 1))} for i in range(8)])

    def lengths(**options: Any) -> list[int]:
        batches = load_data(path, source, batch_size=1, **options)
        return [int(b["attention_mask"].sum()) for b in batches]

    drawn = lengths(max_samples=3)
    assert drawn == sorted(drawn) != [1, 2, 3]
    loader = read(path, source, batch_size=1, max_samples=3, shuffle=True)
    assert sorted(int(b["attention_mask"].sum()) for b in loader) == drawn
    assert lengths(max_samples=3, seed=1) != drawn
    whole = read(path, source, batch_size=1, shuffle=True)
    first, second = ([int(b["attention_mask"].sum()) for b in whole] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(1, 9))
    assert first != second
    again = [unlabelled(whole, limit=4) for _ in range(2)]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(*again, strict=True))


def test_directories_hold_a_file_for_each_split(tmp_path: Path) -> None:
    source = text_source(transformers.BertModel)
    (tmp_path / "train.csv").write_text("text\na b\n")
    (tmp_path / "test.csv").write_text("text\nc\n")
    assert load_data(str(tmp_path), source)[0]["input_ids"].tolist() == [[3, 4]]
    assert load_data(str(tmp_path), source, split="test")[0]["input_ids"].tolist() == [[5]]
    with pytest.raises(SourceError, match=r"holds test.csv, train.csv, and no split 'dev'"):
        read(str(tmp_path), source, split="dev")


def test_parquet_and_saved_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs prunec[data]")
    source = text_source(transformers.BertForSequenceClassification)
    made = datasets.Dataset.from_dict({"text": ["a b", "c"], "label": [1, 0]})
    made.to_parquet(str(tmp_path / "rows.parquet"))
    made.save_to_disk(str(tmp_path / "saved"))
    both = datasets.DatasetDict({"train": made, "test": made.select([1])})
    both.save_to_disk(str(tmp_path / "splits"))
    for name in ("rows.parquet", "saved", "splits"):
        (batch,) = load_data(str(tmp_path / name), source)
        assert batch["input_ids"].tolist() == [[3, 4], [5, 0]]
        assert batch["labels"].tolist() == [1, 0]
    (batch,) = load_data(str(tmp_path / "splits"), source, split="test")
    assert batch["labels"].tolist() == [0]
    with pytest.raises(SourceError, match="no split 'dev': it has train, test"):
        read(str(tmp_path / "splits"), source, split="dev")
    (tmp_path / "broken.parquet").write_text("none")
    with pytest.raises(SourceError, match="is no parquet file"):
        read(str(tmp_path / "broken.parquet"), source)


class Pictures(nn.Module):
    """Images of 8 x 8 to two classes by their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def picture_folder(root: Path, split: str = "") -> Path:
    image = pytest.importorskip("PIL.Image", reason="images need pillow")
    for name, shade in (("dark", 20), ("light", 220)):
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(3):
            image.new("RGB", (12, 10), (shade, shade + i, shade)).save(folder / f"{i}.png")
    return root


def test_folders_of_images_are_classes(tmp_path: Path) -> None:
    root = picture_folder(tmp_path)
    model = Pictures().eval()
    source = Source(model, (torch.randn(2, 3, 8, 8),), {}, "factory", "m:f")
    batches = load_data(str(root), source, batch_size=4)
    pixels, labels = batches[0]
    assert pixels.shape == (4, 3, 8, 8)
    assert labels.tolist() == [0, 0, 0, 1]
    assert pixels[0].mean() == pytest.approx(20 / 255, abs=0.01)
    data = read(str(root), source)
    metric = metric_for("image-classification", data, model)
    guesses = torch.cat([model(x).argmax(-1) == y for x, y in batches])
    assert (metric.name, metric(model)) == ("accuracy", pytest.approx(guesses.double().mean()))
    result = compiler.compile(
        model, (torch.randn(2, 3, 8, 8),), target=compiler.Target(width=0.5), train=data,
        evaluate=metric, floor=0.0, measure=False, options={"distill": {"steps": 2}},
    )  # fmt: skip
    assert set(result.report.quality) == {"accuracy"}


def vit(**options: Any) -> Any:
    sizes = {k: v for k, v in SIZES.items() if k != "max_position_embeddings"}
    config = transformers.ViTConfig(image_size=16, patch_size=8, **sizes, **options)
    return transformers.ViTForImageClassification(config).eval()


def test_images_go_through_the_processor_and_by_split(tmp_path: Path) -> None:
    root = picture_folder(tmp_path, "validation")
    model = vit(label2id={"light": 0, "dark": 1}, id2label={0: "light", 1: "dark"})
    size = {"height": 16, "width": 16}
    processor = transformers.ViTImageProcessor(size=size)
    pixels = {"pixel_values": torch.randn(2, 3, 16, 16)}
    source = Source(model, (), pixels, "transformers", "vit", processor)
    (batch,) = load_data(str(root), source, split="validation")
    assert batch["pixel_values"].shape == (6, 3, 16, 16)
    assert batch["labels"].tolist() == [1, 1, 1, 0, 0, 0]  # the model's own numbers
    assert batch["pixel_values"][0].mean() == pytest.approx((20 / 255 - 0.5) / 0.5, abs=0.02)
    args, kwargs, labels = split_batch(batch)
    assert (args, list(kwargs)) == ((), ["pixel_values"])
    assert labels is not None
    table = tmp_path / "rows.csv"
    table.write_text("image,label\nvalidation/dark/0.png,dark\n")
    assert load_data(str(table), source)[0]["labels"].tolist() == [1]
    (root / "validation" / "light").rename(root / "validation" / "bright")
    other = Source(vit(num_labels=3), (), pixels, "transformers", "vit", processor)
    with pytest.raises(SourceError, match=r"2 classes \(bright, dark\), and the model has 3"):
        read(str(root), other, split="validation")


def test_classes_are_those_of_all_folders_whatever_is_drawn(tmp_path: Path) -> None:
    root = picture_folder(tmp_path, "train")
    shutil.copytree(root / "train" / "light", root / "test" / "light")
    source = Source(Pictures().eval(), (torch.randn(2, 3, 8, 8),), {}, "factory", "m:f")
    (batch,) = load_data(str(root), source, split="test")
    assert batch[1].tolist() == [1, 1, 1]  # as in training, though "dark" has no image here
    shutil.copytree(root / "train" / "light", root / "train" / "medium")
    with pytest.raises(SourceError, match=r"3 classes .* and the model has 2: name the folders"):
        read(str(root), source, max_samples=1)


def test_one_folder_of_images_has_no_labels(tmp_path: Path) -> None:
    root = picture_folder(tmp_path, "images")
    shutil.rmtree(root / "images" / "light")
    source = Source(Pictures().eval(), (torch.randn(2, 3, 8, 8),), {}, "factory", "m:f")
    for place in (root / "images", root / "images" / "dark"):
        (batch,) = load_data(str(place), source)
        assert batch.shape == (3, 3, 8, 8)


def test_a_table_in_a_directory_goes_before_its_images(tmp_path: Path) -> None:
    root = picture_folder(tmp_path, "images")
    rows = "\n".join(f"images/dark/{i}.png,{i}" for i in range(2))
    (root / "train.csv").write_text(f"image,label\n{rows}\n")
    source = Source(Pictures().eval(), (torch.randn(2, 3, 8, 8),), {}, "factory", "m:f")
    ((pixels, labels),) = load_data(str(root), source)
    assert (len(pixels), labels.tolist()) == (2, [0, 1])
    (root / "train.csv").write_text("image,label\nimages/dark/0.png,2\n")
    with pytest.raises(SourceError, match=r"entry 1 .* label 2 under 'label', .* 0 to 1"):
        read(str(root), source)
    many = text_source(transformers.BertForSequenceClassification, num_labels=12)
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "train.csv").write_text("text,label\na,10\nb,2\nc,3\n")
    assert load_data(str(texts), many)[0]["labels"].tolist() == [10, 2, 3]


def test_a_split_that_is_not_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = text_source(transformers.BertModel)
    path = written(tmp_path, [{"text": "a b"}])
    folder = picture_folder(tmp_path / "pictures")
    (tmp_path / "one").mkdir()
    written(tmp_path / "one", [{"text": "a b"}], "train.jsonl")
    (tmp_path / "texts_of.py").write_text("def texts():\n    return ['a b']\n")
    monkeypatch.chdir(tmp_path)
    images = Source(Pictures().eval(), (torch.randn(2, 3, 8, 8),), {}, "factory", "m:f")
    for name, own in ((path, source), (str(folder), images), ("one", source)):
        assert load_data(name, own)
        with pytest.raises(SourceError, match="no split 'test'"):
            read(name, own, split="test")
    assert load_data("texts_of:texts", source)
    with pytest.raises(SourceError, match="takes no `split`"):
        read("texts_of:texts", source, split="test")


def test_pairs_come_with_their_segments(tmp_path: Path) -> None:
    source = text_source(transformers.BertForSequenceClassification)
    made = source.processor
    made.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    alone = load_data(written(tmp_path, [{"text": "a b"}], "alone.jsonl"), source)
    assert "token_type_ids" not in alone[0]
    pair = {"sentence1": "a b", "sentence2": "c", "label": 1}
    (batch,) = load_data(written(tmp_path, [pair]), source)
    assert source.kwargs["token_type_ids"].tolist() == [[0, 0, 1, 1]] * 2
    assert batch["token_type_ids"].shape == batch["input_ids"].shape
    compiler.capture(source.model, kwargs=source.kwargs)


def test_real_values_are_real_in_every_batch(tmp_path: Path) -> None:
    stars = [{"text": "a b", "label": "4"}, {"text": "c", "label": "4.5"}]
    source = text_source(transformers.BertForSequenceClassification)
    parts = load_data(written(tmp_path, stars), source, batch_size=1)
    assert {p["labels"].dtype for p in parts} == {torch.float32}
    one = text_source(transformers.BertForSequenceClassification, num_labels=1)
    whole = written(tmp_path, [{"text": "a", "label": i} for i in range(3)], "whole.jsonl")
    batches = load_data(whole, one)
    assert batches[0]["labels"].dtype == torch.float32
    assert metric_for("text-classification", batches, one.model).name == "R2"
    named = written(tmp_path, [{"text": "a", "label": "1.0"}], "named.jsonl")
    assert load_data(named, source)[0]["labels"].tolist() == [1]


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    root = picture_folder(tmp_path)
    (root / "dark" / "0.png").write_text("no image")
    source = Source(Pictures(), (torch.randn(2, 3, 8, 8),), {}, "factory", "m:f")
    with pytest.raises(SourceError, match=r"0\.png is no image"):
        load_data(str(root), source)
    text = text_source(transformers.BertModel)
    with pytest.raises(SourceError, match="takes no images"):
        load_data(str(root), text, task="image-classification")


def test_metrics_without_classes() -> None:
    x = torch.randn(16, 4)
    model, other = nn.Linear(4, 1), nn.Linear(4, 1)
    real = metric_for("text-classification", [(x, model(x).detach()[:, 0])], model)
    assert real.name == "R2"
    assert real(model) == pytest.approx(1)
    assert real(other) < 1
    free = metric_for("feature-extraction", [x], model)
    assert free.name == "cosine"
    assert free(model) == pytest.approx(1)
    hidden = metric_for("text-classification", [(x, torch.zeros(16, dtype=torch.long))], model)
    assert hidden.name == "R2"  # one value has no largest
    short = metric_for("text-classification", [(x, torch.zeros(16, 2))], model)
    with pytest.raises(SourceError, match="are no real values"):
        short(model)
    two = nn.Linear(4, 2)
    wrong = metric_for("text-classification", [(x, torch.zeros(16, 3, dtype=torch.long))], two)
    with pytest.raises(SourceError, match="are no classes for outputs"):
        wrong(two)


def test_several_labels_of_a_sample_are_judged_one_by_one(tmp_path: Path) -> None:
    options = {"num_labels": 3, "problem_type": "multi_label_classification"}
    source = text_source(transformers.BertForSequenceClassification, **options)
    rows = [{"text": "a", "label": [0, True, 1]}, {"text": "b c", "label": [1, 0, 1]}]
    data = read(written(tmp_path, rows), source)
    (batch,) = data
    assert batch["labels"].dtype == torch.float32  # no classes: distillation compares the outputs
    metric = metric_for("text-classification", data, source.model)
    logits = source.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    right = (logits.logits > 0) == (batch["labels"] > 0)
    assert metric.name == "label accuracy at logit 0"
    assert metric(source.model) == pytest.approx(right.double().mean().item())
    assert metric.samples == 2
    for label, message in (
        ([0, 1], "entry 1 of .* has 2 labels under 'label', and the model .* 3"),
        ([0, 1, 2], "entry 1 of .* has 2 under 'label'"),
        (1, "entry 1 of .* one label under 'label'"),
    ):
        with pytest.raises(SourceError, match=message):
            read(written(tmp_path, [{"text": "a", "label": label}], "wrong.jsonl"), source)


def test_labels_that_judge_nothing_are_refused() -> None:
    x, model = torch.randn(4, 2), nn.Linear(2, 3)
    for labels, message in (
        (torch.full((4,), 3), "label 3 .* classes, 0 to 2"),
        (torch.full((4,), -1), "label -1 .* classes, 0 to 2"),
        (torch.full((4,), -100), "hold no label"),
        (torch.ones(4, 3), "are equal"),
    ):
        with pytest.raises(SourceError, match=message):
            metric_for("image-classification", [(x, labels)], model)(model)


def test_outputs_without_a_value_have_no_accuracy() -> None:
    x, labels = torch.full((4, 2), torch.nan), torch.zeros(4, dtype=torch.long)
    model = nn.Linear(2, 3)
    assert math.isnan(metric_for("image-classification", [(x, labels)], model)(model))


def test_a_decoder_without_targets_is_judged_on_the_text(tmp_path: Path) -> None:
    source = t5()
    for row, ending in (({"text": "a b"}, "repeating the text (no target)"),
                        ({"text": "a b", "summary": "c d"}, "log-likelihood")):  # fmt: skip
        data = load_data(written(tmp_path, [row]), source)
        assert metric_for("text2text-generation", data, source.model).name.endswith(ending)
