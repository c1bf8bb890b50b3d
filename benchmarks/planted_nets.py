"""The nets that redundancy is planted in: a CNN on digits and a byte-level transformer, trained."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import byte_transformer
import plain_digits
import planting
import torch
from planting import Place
from torch import Tensor, nn
from torch.nn import functional as F

GELU_IS_ZERO = -12.0


def without_idle_units(model: plain_digits.PlainNet) -> plain_digits.PlainNet:
    """A copy without the hidden units that no training image switches on: redundant as well, but
    nobody planted them, and other images do switch some of them on."""
    images, _ = plain_digits.splits()["train"]
    model, seen = copy.deepcopy(model), []
    hook = model.linear.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    with torch.no_grad():
        model(images)
    hook.remove()
    used = (seen[0].amax(0) > 0).nonzero()[:, 0]
    linear, head = nn.Linear(256, len(used)), nn.Linear(len(used), plain_digits.CLASSES)
    with torch.no_grad():
        linear.weight.copy_(model.linear.weight[used])
        linear.bias.copy_(model.linear.bias[used])
        head.weight.copy_(model.head.weight[:, used])
        head.bias.copy_(model.head.bias)
    model.linear, model.head = linear, head
    return model.eval()


class NeckNet(nn.Module):
    """A trained PlainNet with a residual branch and a linear bottleneck in it, equal in function.

    (N, 1, 8, 8) -> logits (N, 10). The branch (two convolutions beside a shortcut) adds zero, the
    bottleneck is a rotation that the layer behind it undoes; `branch=False` leaves the branch out.
    """

    def __init__(self, model: plain_digits.PlainNet, branch: bool, seed: int) -> None:
        super().__init__()
        model = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(seed)
        self.conv1, self.norm1 = model.conv1, model.norm1
        self.conv2, self.norm2 = model.conv2, model.norm2
        self.conv3, self.norm3 = model.conv3, model.norm3
        self.linear, self.head = model.linear, model.head
        self.branch1: nn.Module | None = None
        if branch:
            self.branch1 = nn.Conv2d(64, 32, 3, padding=1)
            self.branch2 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.neck = nn.Conv2d(64, 64, 1, bias=False)
        rotation = torch.linalg.qr(torch.randn(64, 64, generator=generator))[0]
        with torch.no_grad():
            self.neck.weight.copy_(rotation[:, :, None, None])
            # back = rotation transposed, its inverse
            self.conv3.weight.copy_(torch.einsum("oihw,ji->ojhw", self.conv3.weight, rotation))

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(images)))
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)
        if self.branch1 is not None:
            x = x + self.branch2(F.relu(self.branch1(x)))
        x = F.max_pool2d(F.relu(self.norm3(self.conv3(self.neck(x)))), 2)
        return self.head(F.relu(self.linear(x.flatten(1))))


@dataclasses.dataclass
class PlantedNet:
    """A net, the one it was made from, and `planted`: how many entries are redundant, by a tensor
    whose rows carry the entries and the kind of the dimension."""

    original: nn.Module
    model: nn.Module
    calibration: list[Any]
    held_out: Tensor
    planted: dict[tuple[str, str], int]


KINDS = (
    "duplicates",
    "mixtures",
    "cancelling",
    "unread",
    "silent",
    "inactive",
    "zero branch",
    "cancelling branch",
)
BRANCHES = ("zero branch", "cancelling branch")
ALL = tuple(kind for kind in KINDS if kind != "zero branch")  # one branch, the one that hides


def digits(kinds: Sequence[str], trained: plain_digits.PlainNet, seed: int) -> PlantedNet:
    """The CNN with these kinds of redundancy in it."""
    generator = torch.Generator().manual_seed(seed)
    images, _ = plain_digits.splits()["train"]
    trained = without_idle_units(trained)
    branch = next((kind for kind in kinds if kind in BRANCHES), None)
    model = NeckNet(trained, branch is not None, seed).eval()
    planted: dict[tuple[str, str], int] = {}
    if branch == "zero branch":
        nn.init.zeros_(model.branch2.weight)
    if branch == "cancelling branch":
        assert isinstance(model.branch1, nn.Conv2d)
        _cancel(Place("branch1", [model.branch1], model.branch2, 32), generator)
    if branch is not None:
        planted["branch1.weight", "channel"] = 32
    places = [
        Place("conv1", [model.conv1, model.norm1], model.conv2, 32),
        Place("conv3", [model.conv3, model.norm3], model.linear, 64),
        Place("linear", [model.linear], model.head, model.linear.out_features),
        Place("neck", [model.neck], model.conv3, 64, linear=True, zero_at=None),
    ]
    if branch is None:  # with one, the branch reads this place as well
        places.insert(1, Place("conv2", [model.conv2, model.norm2], model.neck, 64))

    def show() -> None:
        with torch.no_grad():
            model(images)

    for place in places:
        made = _plant(place, kinds, generator, show)
        if made:
            kind = "hidden" if place.name == "linear" else "channel"
            planted[f"{place.name}.weight", kind] = made
    held_out, _ = plain_digits.splits()["test"]
    return PlantedNet(trained, model, list(images.split(256)), held_out, planted)


def byte_language_model(
    kinds: Sequence[str], trained: byte_transformer.ByteTransformer, seed: int
) -> PlantedNet:
    """The transformer with these kinds of redundancy in it: heads, widths of a head, hidden."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(trained).eval()
    planted: dict[tuple[str, str], int] = {}
    calibration = byte_transformer.windows("train", 96, seed=2000 + seed)[:, :-1]

    def show() -> None:
        with torch.no_grad():
            model(calibration[:32])

    for index, block in enumerate(model.blocks):
        assert isinstance(block, byte_transformer.Block)
        makers = [block.query, block.key, block.value]
        heads = Place("heads", makers, block.out, block.heads, positive=False, zero_at=None)
        hidden = Place(
            "up",
            [block.up],
            block.down,
            block.up.out_features,
            positive=False,
            zero_at=GELU_IS_ZERO,
        )
        made = _plant(heads, kinds, generator, show, share=0.5)
        if made:
            planted[f"blocks.{index}.query.weight", "head"] = made
        block.heads = heads.size
        made = _plant(hidden, kinds, generator, show)
        if made:
            planted[f"blocks.{index}.up.weight", "hidden"] = made
        if "mixtures" in kinds:
            width = block.value.out_features // heads.size
            value = Place("value", [block.value], block.out, width, outer=heads.size, linear=True)
            made = planting.mixtures(value, width // 2, generator)
            planting.shuffled(value, generator)
            planted[f"blocks.{index}.value.weight", "head-dim"] = made
    branch = next((kind for kind in kinds if kind in BRANCHES), None)
    if branch is not None:
        planted = _insert_block(model, trained, branch, generator, planted)
    held_out = byte_transformer.windows("held-out", 32, seed=0)[:, :-1]
    return PlantedNet(trained, model, list(calibration.split(32)), held_out, planted)


def _plant(
    place: Place,
    kinds: Sequence[str],
    generator: torch.Generator,
    show: Callable[[], None],
    share: float = 0.25,
) -> int:
    """Plant every kind that the place can take, `share` of its size each; how many in all."""
    count = int(place.size * share)
    made = 0
    for kind in kinds:
        if kind == "inactive" and place.zero_at is not None:
            made += planting.inactive(place, count, generator, show)
        elif kind == "mixtures" and place.linear:
            made += planting.mixtures(place, count, generator)
        elif kind in ("duplicates", "cancelling", "unread", "silent"):
            made += getattr(planting, kind)(place, count, generator)
    if made:
        planting.shuffled(place, generator)
    return made


def _cancel(place: Place, generator: torch.Generator) -> None:
    """Make the second half of the entries undo the first, in a random order."""
    half = place.size // 2
    made = place.current()
    for tensors in made:
        for rows in tensors.values():
            rows[:, half:] = rows[:, :half]
    read = place.columns()
    read[:, half:] = -read[:, :half]
    place.grow(made, read)
    planting.shuffled(place, generator)


def _insert_block(
    model: byte_transformer.ByteTransformer,
    trained: byte_transformer.ByteTransformer,
    kind: str,
    generator: torch.Generator,
    planted: dict[tuple[str, str], int],
) -> dict[tuple[str, str], int]:
    """A block that adds nothing in the middle: its last weights are zero, or undo one another."""
    first = trained.blocks[0]
    assert isinstance(first, byte_transformer.Block)
    width, heads, hidden = first.up.in_features, first.heads, first.up.out_features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        block = byte_transformer.Block(width, heads, hidden).eval()
    for layer in (block.out, block.down):
        nn.init.zeros_(layer.bias)
        if kind == "zero branch":
            nn.init.zeros_(layer.weight)
    if kind == "cancelling branch":
        makers = [block.query, block.key, block.value]
        _cancel(Place("heads", makers, block.out, heads), generator)
        _cancel(Place("up", [block.up], block.down, hidden), generator)
    index = len(model.blocks) // 2
    blocks = [*model.blocks[:index], block, *model.blocks[index:]]
    model.blocks = nn.ModuleList(blocks)
    shifted = {(_shift(name, index), kind): n for (name, kind), n in planted.items()}
    own = {
        (f"blocks.{index}.query.weight", "head"): heads,
        (f"blocks.{index}.up.weight", "hidden"): hidden,
    }
    return shifted | own


def _shift(name: str, index: int) -> str:
    """The name of a tensor once a block stands before those from `index` on."""
    first, number, rest = name.split(".", 2)
    return f"{first}.{int(number) + (int(number) >= index)}.{rest}"


NETS = {"digits": digits, "bytes": byte_language_model}
