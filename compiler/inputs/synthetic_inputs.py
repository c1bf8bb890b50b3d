"""One random input for each parameter of `forward` that a transformers configuration describes.

`MAKERS` maps the parameter's name to a function of (config, batch, generator) that gives a tensor
on the CPU, floats as float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

# Long enough that a latency measured on it says something, and no usual width, so that a length
# and a width are not the same number by chance.
TEXT_LENGTH = 120
DECODER_LENGTH = 56
IMAGE_SIZE = 224
FRAMES_OF_VIDEO = 8
FRAMES_OF_SPECTROGRAM = 200
SAMPLES_OF_SOUND = 23_040  # about a second, in whole frames of every common codec

# One thing under many names.
_LENGTH_LIMITS = (
    "max_position_embeddings",
    "n_positions",
    "max_target_positions",
    "n_ctx",
    "max_seq_len",
    "seq_length",
)
_BINS = ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", "input_dim")

Maker = Callable[[Any, int, Generator], Tensor]


def _number(config: Any, *names: str) -> int | None:
    """The first of these attributes that is a positive integer."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _section(config: Any, *names: str) -> Any:
    """The part of a composed configuration that describes one tower, or the whole."""
    return next((s for n in names if (s := getattr(config, n, None)) is not None), config)


def _text(config: Any, decoder: bool = False) -> Any:
    """The part that describes the text; a composed one may not know its own."""
    found = config
    if hasattr(config, "get_text_config"):
        with contextlib.suppress(ValueError):  # raised where there are several
            found = config.get_text_config(decoder=decoder)
    return found if found is not config else _section(config, "text_config", "text_encoder")


def _length(config: Any, wanted: int) -> int:
    limit = _number(config, *_LENGTH_LIMITS)
    # RoBERTa and its kin number positions from 2.
    return wanted if limit is None else min(wanted, max(limit - 2, 1))


def token_ids(config: Any, shape: Sequence[int], generator: Generator) -> Tensor:
    """Ids below the vocabulary's size that have no special meaning, each row closed by the end
    token where there is one (CLIP pools there)."""
    size = _number(config, "vocab_size", "text_vocab_size", "num_embeddings") or 2
    special: set[int] = set()
    for name, value in vars(config).items():
        if name.endswith(("_token_id", "_token_index")):
            special.update(value if isinstance(value, (list, tuple)) else (value,))
    allowed = torch.tensor([i for i in range(size) if i not in special] or list(range(size)))
    ids = allowed[torch.randint(len(allowed), tuple(shape), generator=generator)]
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < size:
        ids[..., -1] = end
    return ids


def _input_ids(config: Any, batch: int, generator: Generator) -> Tensor:
    text = _text(config)
    return token_ids(text, (batch, _length(text, TEXT_LENGTH)), generator)


def _decoder_input_ids(config: Any, batch: int, generator: Generator) -> Tensor:
    text = _text(config, decoder=True)
    return token_ids(text, (batch, _length(text, DECODER_LENGTH)), generator)


def _boxes(config: Any, batch: int, generator: Generator) -> Tensor:
    length = _length(_text(config), TEXT_LENGTH)
    corners = torch.randint(0, 500, (batch, length, 4), generator=generator)
    corners[..., 2:] += corners[..., :2]  # the lower right one is never above the upper left
    return corners


def _image_shape(config: Any) -> tuple[int, int, int]:
    vision = _section(config, "vision_config", "image_config", "encoder", "backbone_config")
    channels = _number(vision, "num_channels", "in_channels", "in_chans", "num_image_channels")
    inner = _section(vision, "backbone_config")
    size = next((s for c in (vision, inner) if (s := getattr(c, "image_size", None))), None)
    if isinstance(size, dict):
        size = (size.get("height", IMAGE_SIZE), size.get("width", IMAGE_SIZE))
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return channels or 3, int(size[0]), int(size[1])
    side = size if isinstance(size, int) and size > 0 else IMAGE_SIZE
    return channels or 3, side, side


def _pixel_values(config: Any, batch: int, generator: Generator) -> Tensor:
    channels, height, width = _image_shape(config)
    frames = _number(config, "num_frames", "frames_per_clip")
    shape = (batch, frames, channels, height, width) if frames else (batch, channels, height, width)
    return torch.randn(*shape, generator=generator)


def _video(config: Any, batch: int, generator: Generator) -> Tensor:
    channels, height, width = _image_shape(config)
    frames = _number(config, "num_frames", "frames_per_clip") or FRAMES_OF_VIDEO
    return torch.randn(batch, frames, channels, height, width, generator=generator)


def _input_features(config: Any, batch: int, generator: Generator) -> Tensor:
    """Spectrograms. Whisper's kind has (batch, bins, time) of one fixed time."""
    audio = _section(config, "audio_config", "audio_encoder", "encoder_config", "encoder")
    bins = _number(audio, *_BINS) or 80
    positions = _number(audio, "max_source_positions")
    if positions and hasattr(audio, "num_mel_bins"):
        return torch.randn(batch, bins, 2 * positions, generator=generator)
    side = _number(audio, "spec_size")
    if side:  # CLAP looks at a square of spectrogram
        return torch.randn(batch, 1, 4 * side, audio.num_mel_bins, generator=generator)
    return torch.randn(batch, FRAMES_OF_SPECTROGRAM, bins, generator=generator)


def _input_values(config: Any, batch: int, generator: Generator) -> Tensor:
    """Sound: (batch, samples); codecs have (batch, channels, samples), AST (batch, time, bins)."""
    bins, time = _number(config, "num_mel_bins"), _number(config, "max_length")
    if bins and time and hasattr(config, "time_stride"):
        return torch.randn(batch, time, bins, generator=generator)
    if _number(config, "codebook_size", "n_codebooks"):
        channels = _number(config, "audio_channels", "input_channels") or 1
        return torch.randn(batch, channels, SAMPLES_OF_SOUND, generator=generator)
    return torch.randn(batch, SAMPLES_OF_SOUND, generator=generator)


def _past_values(config: Any, batch: int, generator: Generator) -> Tensor:
    steps = _number(config, "context_length") or 32
    channels = _number(config, "num_input_channels") or 1
    return torch.randn(batch, steps, channels, generator=generator)


MAKERS: dict[str, Maker] = {
    "input_ids": _input_ids,
    "pixel_values": _pixel_values,
    "input_features": _input_features,
    "input_values": _input_values,
    "pixel_values_videos": _video,
    "past_values": _past_values,
    "decoder_input_ids": _decoder_input_ids,
    "bbox": _boxes,
}
# What a model with several senses takes beside text.
SIGNALS = ("pixel_values", "input_features", "input_values", "pixel_values_videos")
