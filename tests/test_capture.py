"""Capture: example inputs from the configuration, shapes left dynamic, refusals in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.compiler import Target
from prunec.compiler.errors import CaptureError

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 99,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}


def encoder() -> Any:
    return hf.BertForSequenceClassification(hf.BertConfig(**TEXT))


def decoder() -> Any:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT, num_key_value_heads=2))


def vision() -> Any:
    return hf.ViTForImageClassification(hf.ViTConfig(**IMAGE))


def sound() -> Any:
    config = hf.ASTConfig(**{**IMAGE, "max_length": 48, "num_mel_bins": 32})
    return hf.ASTForAudioClassification(config)


def encoder_decoder() -> Any:
    config = hf.T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, vocab_size=99,
        decoder_start_token_id=0,
    )  # fmt: skip
    return hf.T5ForConditionalGeneration(config)


def speech_to_text() -> Any:
    config = hf.WhisperConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=99,
        num_mel_bins=16, max_source_positions=20, max_target_positions=32, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return hf.WhisperForConditionalGeneration(config)


def text_and_images() -> Any:
    return hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=IMAGE, projection_dim=24))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "inputs", "output"),
    [
        (encoder, {"input_ids", "attention_mask"}, "logits"),
        (decoder, {"input_ids", "attention_mask"}, "logits"),
        (vision, {"pixel_values"}, "logits"),
        (sound, {"input_values"}, "logits"),
        (encoder_decoder, {"input_ids", "attention_mask", "decoder_input_ids"}, "logits"),
        (speech_to_text, {"input_features", "decoder_input_ids"}, "logits"),
        (text_and_images, {"input_ids", "attention_mask", "pixel_values"}, "logits_per_image"),
    ],
)
def test_inputs_come_from_the_configuration(
    build: Callable[[], Any], inputs: set[str], output: str
) -> None:
    model = build().eval()
    graph = compiler.capture(model, outputs=output)
    program = graph.program
    tensors = {name for name, x in program.kwargs.items() if isinstance(x, torch.Tensor)}
    assert program.args == ()
    assert tensors == inputs
    assert program.dynamic
    kinds = {d.kind for d in graph.prunable.values()}
    assert {"hidden", "head", "residual"} <= kinds or {"hidden", "kv-head", "residual"} <= kinds


def test_flags_alone_are_kept_beside_made_inputs() -> None:
    graph = compiler.capture(encoder().eval(), kwargs={"output_hidden_states": True})
    assert graph.program.kwargs["output_hidden_states"] is True
    assert graph.program.out_spec.num_leaves == 3  # logits, and two hidden states


def test_compile_needs_no_inputs_either() -> None:
    model = encoder().eval()
    result = compiler.compile(model, target=Target(width=0.5), measure=False)
    assert type(result.model) is type(model)
    assert result.model.config.hidden_size == 16
    ids = torch.arange(14).reshape(2, 7)
    assert result.model(input_ids=ids).logits.shape == (2, 2)


def test_plain_modules_still_need_inputs() -> None:
    with pytest.raises(
        CaptureError, match=r"do not fit Linear\.forward: missing a required argument"
    ):
        compiler.capture(nn.Linear(4, 2))


def test_model_without_inputs_that_run_says_why() -> None:
    class Stubborn(hf.BertModel):
        def forward(self, input_ids: Any = None, **options: Any) -> Any:
            raise ValueError("needs a moon phase")

    with pytest.raises(CaptureError) as caught:
        compiler.capture(Stubborn(hf.BertConfig(**TEXT)))
    text = str(caught.value)
    assert "needs a moon phase" in text
    assert "pass args or kwargs on which Stubborn runs" in text
    assert "--input" not in text
    assert "\n" not in text


class Options(nn.Module):
    """Takes flags, and a tensor, through **options."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        h = torch.relu(self.body(x))
        return self.head(h * options["gain"] if options.get("scaled") else h)


def test_arguments_through_keywords_leave_the_batch_dynamic() -> None:
    model, x, gain = Options(), torch.randn(3, 4), torch.randn(3, 1)
    graph = compiler.capture(model, (x,), kwargs={"scaled": True, "gain": gain})
    assert graph.program.how == "torch.export, dynamic batch"
    assert graph.program.dynamic
    assert "forward" not in vars(model)
    result = compiler.compile(
        model, (x,), kwargs={"scaled": True, "gain": gain}, target=Target(width=0.5), measure=False
    )
    wide = torch.randn(5, 4), torch.randn(5, 1)
    expected = result.model(wide[0], scaled=True, gain=wide[1])
    assert torch.allclose(result.graph_module(wide[0], scaled=True, gain=wide[1]), expected)


class OnlySix(nn.Module):
    """Refuses other batches than the one it was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x[i] for i in range(len(x))]
        return self.head(torch.relu(self.body(torch.stack(parts).view(6, 4))))


class Branching(OnlySix):
    """Which layer runs depends on a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.body(x)
        return self.head(torch.relu(h) if x.sum().item() > -1e9 else h)


@pytest.mark.parametrize(
    ("cls", "how", "dynamic"),
    [(OnlySix, "torch.export", False), (Branching, "torch.export.draft_export", None)],
)
def test_less_general_captures_are_tried_in_turn(
    cls: type[nn.Module], how: str, dynamic: bool | None
) -> None:
    graph = compiler.capture(cls(), (torch.randn(6, 4),))
    assert graph.program.how.startswith(how)
    assert dynamic is None or graph.program.dynamic is dynamic
    assert any(d.size == 8 for d in graph.prunable.values())
    assert ("draft" in how) == any("draft_export" in note for note in graph.program.notes)


def test_model_that_cannot_be_captured_says_where_and_what_to_do() -> None:
    class Numpy(OnlySix):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x)) * float(x.detach().numpy().std())

    with pytest.raises(CaptureError) as caught:
        compiler.capture(Numpy(), (torch.randn(6, 4),))
    text = str(caught.value)
    assert "Numpy cannot be captured at test_capture.py:" in text
    assert "Remedy: it converts tensors to numpy" in text
    assert "\n" not in text


class Flagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, flag: bool = True, *, shift: Tensor, scale: int = 3) -> Tensor:
        y = self.second(torch.relu(self.first(x))) * scale + shift
        return -y if flag else y


def test_a_graph_whose_constants_are_left_out_of_the_call_is_captured_again() -> None:
    model, x, shift = Flagged().eval(), torch.randn(3, 8), torch.randn(4)
    steps = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
    given = {"scale": 2, "flag": False, "shift": shift}
    captured = compiler.capture(model, (x,), kwargs=given)
    graph = compiler.PassManager(steps).run(captured).graph_module
    again = compiler.PassManager(steps).run(compiler.capture(graph, (x,), kwargs={"shift": shift}))
    assert again.report.checks[0].passed
    assert again.plan.kept


class KeyedBySize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.seen = nn.Linear(8, 16), nn.Linear(16, 4), {}

    def forward(self, x: Tensor) -> Tensor:
        self.seen[x.shape[0]] = x  # no symbolic size has a hash
        return self.second(torch.relu(self.first(x)))


def test_an_attempt_that_failed_leaves_no_marks_for_the_next() -> None:
    model, x = KeyedBySize().eval(), torch.randn(3, 8)
    before = set(vars(x))
    assert compiler.capture(model, (x,)).prunable
    assert set(vars(x)) == before
    assert not model.seen
