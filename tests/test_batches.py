"""The meaning of batches: what is handed to forward, what is a label, and what is refused."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunec.compiler.capture.batches import (
    BatchError,
    forward_arguments,
    named_arguments,
    split_batch,
    to_device,
    unlabelled,
)

x, mask, y = torch.randn(2, 3), torch.ones(2, 3), torch.tensor([0, 1])


def test_calibration_forms() -> None:
    assert forward_arguments(x) == ((x,), {})
    assert forward_arguments((x, mask)) == ((x, mask), {})
    assert forward_arguments([x, None]) == ((x, None), {})
    assert forward_arguments({"input_ids": x, "labels": y}) == ((), {"input_ids": x, "labels": y})


@pytest.mark.parametrize("item", [(), [], {}, {0: x}, None, "ab", 3])
def test_calibration_refuses(item: object) -> None:
    with pytest.raises(BatchError, match=r"names of forward|must be a tensor"):
        forward_arguments(item)


def test_training_forms() -> None:
    assert split_batch(x) == ((x,), {}, None)
    assert split_batch((x, y)) == ((x,), {}, y)
    assert split_batch([x]) == ((x,), {}, None)
    assert split_batch(((x, mask), y)) == ((x, mask), {}, y)
    assert split_batch(((x, mask), None)) == ((x, mask), {}, None)
    assert split_batch({"input_ids": x}) == ((), {"input_ids": x}, None)
    assert split_batch(({"input_ids": x}, y)) == ((), {"input_ids": x}, y)


def test_labels_of_a_dict_leave_the_callers_dict_alone() -> None:
    batch = {"input_ids": x, "labels": y}
    assert split_batch(batch) == ((), {"input_ids": x}, y)
    assert set(batch) == {"input_ids", "labels"}
    assert split_batch({"input_ids": x, "labels": None}) == ((), {"input_ids": x}, None)


@pytest.mark.parametrize(
    ("batch", "remedy"),
    [
        ((x, mask, y), r"batch of 3 items is ambiguous: give \(batch, labels\)"),
        ((), "batch of 0 items"),
        (({"input_ids": x, "labels": y}, y), "drop one of them"),
        ((x, [0, 1]), r"not a list of 2: use torch\.as_tensor"),
        ({"labels": y}, "names of forward's arguments"),
        (("text", y), "not a str"),
        (3, "not a int"),
    ],
)
def test_training_refuses(batch: object, remedy: str) -> None:
    with pytest.raises(BatchError, match=remedy):
        split_batch(batch)


def test_data_loaders_collate_into_the_accepted_forms() -> None:
    (labelled,) = DataLoader(TensorDataset(x, y), batch_size=2)
    (unlabelled,) = DataLoader(TensorDataset(x), batch_size=2)
    args, _, labels = split_batch(labelled)
    assert torch.equal(args[0], x)
    assert labels is not None
    assert torch.equal(labels, y)
    args, _, labels = split_batch(unlabelled)
    assert torch.equal(args[0], x)
    assert labels is None


def test_every_tensor_moves_and_nothing_else_changes() -> None:
    # The meta device stands in for an accelerator: it is always there.
    Pair = namedtuple("Pair", "first second")
    moved = to_device({"a": [x, (mask, "s")], "p": Pair(y, None), "n": 3}, "meta")
    assert moved["a"][0].is_meta
    assert moved["a"][1][0].is_meta
    assert moved["a"][1][1] == "s"
    assert isinstance(moved["p"], Pair)
    assert moved["p"].first.is_meta
    assert moved["n"] == 3
    args, kwargs, labels = split_batch(({"x": x}, y), "meta")
    assert args == ()
    assert kwargs["x"].is_meta
    assert labels is not None
    assert labels.is_meta
    assert forward_arguments((x, mask), "meta")[0][1].is_meta


def test_arguments_get_the_names_of_forward() -> None:
    class Model(nn.Module):
        def forward(self, ids, attention_mask=None, *rest, scale=1, **more):
            return ids

    named = named_arguments(Model(), (x, mask, y), {"scale": 2, "other": 3})
    assert named == {"ids": x, "attention_mask": mask, "scale": 2, "other": 3}


def test_an_encoder_decoder_gets_its_decoders_inputs_from_the_labels() -> None:
    config = transformers.T5Config(
        vocab_size=20,
        d_model=8,
        d_kv=4,
        d_ff=8,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    ids, labels = torch.tensor([[3, 4, 5]]), torch.tensor([[7, 8, -100]])
    batch = {"input_ids": ids, "labels": labels}
    args, kwargs, found = split_batch(batch, model=model)
    assert args == ()
    assert found is labels
    assert kwargs["decoder_input_ids"].tolist() == [[0, 7, 8]]
    with torch.no_grad():
        expected = model(input_ids=ids, labels=labels).logits
        assert torch.equal(model(**kwargs).logits, expected)
    own = {**batch, "decoder_input_ids": ids}
    assert split_batch(own, model=model)[1]["decoder_input_ids"] is ids
    assert list(split_batch(batch)[1]) == ["input_ids"]
    # a graph takes what it was captured with
    assert "decoder_input_ids" not in unlabelled([batch], model, {"input_ids": ids})[0]
    assert "decoder_input_ids" in unlabelled([batch], model, own)[0]


def test_labels_of_models_without_a_way_of_their_own_to_shift_them() -> None:
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 20}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.M2M100Config(
        **sizes, **heads, encoder_ffn_dim=8, decoder_ffn_dim=8, pad_token_id=1
    )
    model = transformers.M2M100ForConditionalGeneration(config).eval()
    assert not hasattr(model, "prepare_decoder_input_ids_from_labels")
    ids, labels = torch.tensor([[3, 4, 5]]), torch.tensor([[7, 8, -100]])
    with torch.no_grad():
        expected = model(input_ids=ids, labels=labels).logits
        for batch in ({"input_ids": ids, "labels": labels}, ((ids,), labels)):
            args, kwargs, _ = split_batch(batch, model=model)
            assert torch.equal(model(*args, **kwargs).logits, expected)
    # Classes are no tokens, nor is what comes with the decoder's own inputs.
    assert "decoder_input_ids" not in split_batch(((ids,), torch.tensor([1])), model=model)[1]
    assert "decoder_input_ids" not in split_batch(((ids, None, labels), labels), model=model)[1]
