"""Which outputs are matched, by which loss, and what the labels are used for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prunec.passes.distillation.losses import DistillError, distillation_loss
from prunec.passes.distillation.objective import Objective
from prunec.passes.distillation.outputs import classes_last, matched_outputs, position_mask

torch.manual_seed(0)
S, T = torch.randn(2, 8, 4)
Y = torch.randint(0, 4, (8,))


@pytest.mark.parametrize(
    ("build", "labels", "kind", "outputs", "use"),
    [
        (lambda h: h, Y, "logits", ["output"], "used"),
        (lambda h: h, None, "embedding", ["output"], "none"),
        (lambda h: {"logits": h}, None, "logits", ["logits"], "none"),
        (lambda h: {"x": h, "logits": h}, Y, "logits", ["logits"], "used"),
        (lambda h: {"x": h, "last_hidden_state": h}, None, "embedding", None, "none"),
        (lambda h: {"last_hidden_state": h, "sentence_embedding": h}, None, "embedding", None, ""),
        (
            lambda h: {"a_logits": h, "b_logits": h},
            None,
            "logits",
            ["a_logits", "b_logits"],
            "none",
        ),
        # A name says that it is an embedding, whatever labels come along.
        (lambda h: {"sentence_embedding": h}, Y, "embedding", ["sentence_embedding"], "unused"),
        # Sums, booleans and integers are no outputs to match.
        (lambda h: (h.sum(), h > 0, h.long(), h), None, "embedding", ["3"], "none"),
        # Regression and multi-label outputs are no logits of a softmax.
        (lambda h: {"logits": h[:, :1]}, None, "embedding", ["logits"], "none"),
        (lambda h: {"logits": h}, torch.rand(8, 4), "embedding", ["logits"], "unused"),
        (lambda h: h[:, 0], torch.rand(8), "embedding", ["output"], "unused"),
    ],
)
def test_automatic(build: Any, labels: Any, kind: str, outputs: Any, use: str) -> None:
    objective = Objective()
    value = objective(build(S), build(T), labels, {})
    assert value.item() > 0
    assert objective.kind == kind
    assert list(objective.outputs) == (outputs or [list(build(S))[1]])
    assert objective.labels == (use or "none")


def test_the_decision_of_the_first_batch_holds() -> None:
    objective = Objective()
    objective(S, T, Y, {})
    soft = objective(S, T, None, {})
    assert (objective.kind, objective.labels) == ("logits", "used")
    assert soft.item() == distillation_loss(S, T, temperature=4.0, alpha=0.5).item()


def test_several_outputs_are_averaged_and_take_no_labels() -> None:
    student, teacher = {"a_logits": S, "b_logits": T}, {"a_logits": T, "b_logits": S}
    parts = [distillation_loss(S, T, temperature=4, alpha=0.5)]
    parts += [distillation_loss(T, S, temperature=4, alpha=0.5)]
    value = Objective()(student, teacher, None, {})
    assert value.item() == pytest.approx(sum(p.item() for p in parts) / 2)
    with pytest.raises(DistillError, match="cannot belong to all of the outputs a_logits, b_log"):
        Objective()(student, teacher, Y, {})


def test_output_by_key_path_and_index() -> None:
    student = {"a": S, "h": (S, T)}
    teacher = {"h": [S, S], "a": S}
    (match,) = matched_outputs(student, teacher, "h.1")
    assert match.student is T
    assert match.teacher is S
    first, second = matched_outputs((S, T), [T, S], [1, 0])
    assert (first.name, second.name) == ("1", "0")
    assert first.student is T
    with pytest.raises(DistillError, match=r"no float output b among h\.0, h\.1, a"):
        matched_outputs(student, teacher, "b")
    with pytest.raises(DistillError, match='student has no float output "c"'):
        matched_outputs({"a": S}, {"c": S}, "c")
    with pytest.raises(DistillError, match="with no float tensor in common"):
        matched_outputs({"a": S, "b": S}, {"c": S, "d": S})


def test_a_bare_tensor_against_the_fields_of_train_mode() -> None:
    (match,) = matched_outputs({"logits": S, "aux_logits": S}, T)
    assert (match.name, match.student is S, match.teacher is T) == ("logits", True, True)


@pytest.mark.parametrize("own", [True, False])
def test_a_decoders_positions_are_masked_by_its_own_mask(own: bool) -> None:
    arguments = {"attention_mask": torch.zeros(2, 5), "decoder_input_ids": torch.ones(2, 5)}
    if own:
        arguments["decoder_attention_mask"] = torch.tensor([[1, 1, 1, 1, 0]] * 2)
    mask = position_mask(arguments, torch.zeros(2, 5, 3))
    assert (mask is not None) is own
    if mask is not None:
        assert mask.sum() == 8


def test_a_mask_of_other_positions_is_left_out() -> None:
    arguments = {"attention_mask": torch.ones(2, 5)}
    assert position_mask(arguments, torch.zeros(2, 3)) is None  # pooled
    assert position_mask(arguments, torch.zeros(2, 4, 3)) is None
    assert position_mask({"attention_mask": torch.ones(2, 1, 5, 5)}, torch.zeros(2, 5, 3)) is None


def test_the_class_axis_is_found() -> None:
    image = torch.zeros(2, 3, 4, 5)
    assert classes_last(image).shape == (2, 4, 5, 3)
    assert classes_last(image, torch.zeros(2, 4, 5)).shape == (2, 4, 5, 3)
    assert classes_last(image, torch.zeros(2, 3, 4)).shape == (2, 3, 4, 5)
    assert classes_last(torch.zeros(2, 3, 4), torch.zeros(2, 4)).shape == (2, 4, 3)
    assert classes_last(torch.zeros(2, 3, 4)).shape == (2, 3, 4)
    assert classes_last(torch.zeros(2)).shape == (2, 1)
    square = torch.zeros(2, 3, 3)  # tokens by classes, as language models give them
    assert classes_last(square, torch.zeros(2, 3)) is square


def test_dense_prediction_is_torchs_cross_entropy() -> None:
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    value = Objective(alpha=0.0)(logits, logits, labels, {})
    assert value.item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_next_token_labels_leave_padding_out() -> None:
    logits = torch.randn(2, 4, 9)
    ids, mask = torch.randint(0, 9, (2, 4)), torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]])
    objective = Objective(alpha=0.0)
    value = objective(logits, logits, ids, {"input_ids": ids, "attention_mask": mask})
    pairs = [(0, 1), (0, 2), (1, 0)]  # both the position and the token after it are no padding
    expected = [F.cross_entropy(logits[b, s], ids[b, s + 1]) for b, s in pairs]
    assert objective.labels == "next token"
    assert value.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


@pytest.mark.parametrize("case", ["masked tokens", "already moved", "encoder-decoder"])
def test_other_labels_stay_in_place(case: str) -> None:
    logits, ids = torch.randn(2, 4, 9), torch.randint(0, 8, (2, 4))
    arguments: dict[str, Tensor] = {"input_ids": ids}
    labels = ids.roll(-1, 1) if case == "already moved" else ids.clone()
    if case == "masked tokens":
        labels[:, [0, 2, 3]] = -100
        arguments["input_ids"] = ids.index_fill(1, torch.tensor([1]), 8)
    elif case == "encoder-decoder":
        arguments["decoder_input_ids"] = ids
    objective = Objective(alpha=0.0)
    value = objective(logits, logits, labels, arguments)
    expected = F.cross_entropy(logits.transpose(1, 2), labels)
    assert objective.labels == "used"
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_softmax_over_one_value_is_refused() -> None:
    with pytest.raises(DistillError, match=r'one value wide.*use objective="embedding"'):
        Objective("logits")(S[:, :1], T[:, :1], None, {})


def test_the_class_of_the_loss_says_whether_labels_are_moved() -> None:
    """Masked tokens that were all left as they are repeat the input; embeddings leave no tokens."""
    tokens, logits = torch.randint(0, 4, (2, 6)), torch.randn(2, 6, 4)
    masked = Objective(shifted=False)
    masked(logits, logits, tokens, {"input_ids": tokens})
    embedded = Objective(shifted=True)
    embedded(logits, logits, tokens, {"inputs_embeds": logits})
    moved = Objective(shifted=True)
    moved(logits, logits, tokens.roll(-1, 1), {"input_ids": tokens})
    assert [o.labels for o in (masked, embedded, moved)] == ["used", "next token", "used"]
