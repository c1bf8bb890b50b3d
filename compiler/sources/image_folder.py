"""Images in a folder for each class, and images of rows, as tensors the model takes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SourceError
from .model import Source

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Means and deviations that models of torchvision were trained with (its documentation).
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_NO_PILLOW = "images are read by pillow, which is not installed: pip install pillow."


def has_images(folder: Path) -> bool:
    """Whether a folder holds images, or folders that do."""
    inside = [folder, *(p for p in folder.iterdir() if p.is_dir())] if folder.is_dir() else []
    return any(p.suffix.lower() in SUFFIXES for place in inside for p in place.iterdir())


def image_rows(folder: Path) -> Sequence[Mapping[str, Any]]:
    """A row for each image, in the order of their names: `image`, a path, and `label`, the name of
    the folder it is in; without a label for images right in the folder."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            inside = path.relative_to(folder).parts
            rows.append({"image": path, **({"label": inside[0]} if len(inside) > 1 else {})})
    if len({len(row) for row in rows}) > 1:
        raise SourceError(f"{folder} holds images beside folders of images: move them into one.")
    return rows


def classes_of(folders: Sequence[Path]) -> list[str] | None:
    """The names of the folders of images inside, in the order of the alphabet; None for fewer than
    two, which tell nothing apart."""
    inside = {
        p.name for folder in folders for p in folder.iterdir() if p.is_dir() and has_images(p)
    }
    return sorted(inside) if len(inside) > 1 else None


def image_transform(source: Source) -> Callable[[Any], Tensor]:
    """What turns an image (PIL, path, array or bytes) into a float tensor [C, H, W] for the model:
    its processor, else what timm says of it, torchvision's usual means, or, where nothing is known,
    the example's size with values from 0 to 1.

    Raises SourceError for a model that takes no images.
    """
    processor: Any = getattr(source.processor, "image_processor", source.processor)
    if hasattr(processor, "image_mean") or hasattr(processor, "do_resize"):

        def by_processor(image: Any) -> Tensor:
            made = processor(images=open_image(image, "RGB"), return_tensors="pt")
            return made["pixel_values"][0]

        return by_processor
    example = next((v for v in (*source.args, *source.kwargs.values()) if _is_image(v)), None)
    if example is None:
        raise SourceError(
            f"{source.name} takes no images: pass package.module:factory that gives its batches."
        )
    channels, height, width = example.shape[-3:]
    config = getattr(source.model, "pretrained_cfg", None) or {}
    if config.get("mean"):
        mean, deviation = config["mean"], config["std"]
    elif source.kind == "torchvision":
        mean, deviation = IMAGENET
    else:
        mean, deviation = (0.0,) * channels, (1.0,) * channels
    shift = torch.tensor(mean)[:, None, None], torch.tensor(deviation)[:, None, None]

    def to_size(image: Any) -> Tensor:
        opened = open_image(image, "L" if channels == 1 else "RGB")
        scale = max(width / opened.width, height / opened.height)
        size = max(width, round(opened.width * scale)), max(height, round(opened.height * scale))
        opened = opened.resize(size)
        left, top = (opened.width - width) // 2, (opened.height - height) // 2
        cropped = opened.crop((left, top, left + width, top + height))
        data = torch.frombuffer(bytearray(cropped.tobytes()), dtype=torch.uint8)
        pixels = data.reshape(height, width, channels).permute(2, 0, 1).float() / 255
        return (pixels - shift[0]) / shift[1]

    return to_size


def open_image(image: Any, mode: str) -> Any:
    """An image of a row as PIL's: a path, PIL's own, bytes, or the dict of those that `datasets`
    gives. Raises SourceError for what is none, or without pillow."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise SourceError(_NO_PILLOW) from error
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        image = io.BytesIO(image)
    try:
        if isinstance(image, (str, Path, io.BytesIO)):
            with Image.open(image) as opened:
                return opened.convert(mode)
        if hasattr(image, "convert"):
            return image.convert(mode)
        return Image.fromarray(image).convert(mode)
    except (OSError, UnidentifiedImageError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(
            f"{str(image)[:200]} is no image that pillow reads: leave it out."
        ) from error


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() >= 4 and value.is_floating_point()
