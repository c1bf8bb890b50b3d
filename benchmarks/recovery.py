"""What training brings back: {raw cut, repaired cut} x {labels, teacher, teacher and insides}.

    python benchmarks/recovery.py [--models digits bytes minilm] [--seeds 3] [--resume]

Each trained model is cut to the widths of the repair benchmark with the same entries going, then
trained for the same steps by each recipe; beside it the same small architecture trained from
scratch, for as long and for ten times as long, and torch-pruning's cut with the same training.
Judged on held-out inputs. Writes results/recovery.json, row by row.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import byte_transformer
import corpus
import minilm
import plain_digits
import repair_peer
import torch
from record import RESULTS, record
from repair_subjects import LENGTH, SUBJECTS, Subject, Width
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from prunec import compiler, passes

KEY = ("model", "seed", "width", "start", "data", "recipe")
FEW = 128  # labelled samples of the digits
WIDTHS = {"digits": ("1/4", "1/8"), "bytes": ("1/2", "1/4"), "minilm": ("2/3, 1/2",)}
STEPS = {"digits": 300, "bytes": 200, "minilm": 300}
RATE = {"digits": 2e-3, "bytes": 1e-3, "minilm": 5e-4}
RECIPES: dict[str, dict[str, Any]] = {
    "CE": {"alpha": 0.0, "features": 0.0},
    "KD": {"alpha": 1.0, "features": 0.0},
    "CE + KD": {"alpha": 0.5, "features": 0.0},
    "KD + insides": {"alpha": 1.0, "features": 1.0},
    "KD + insides to the end": {"alpha": 1.0, "features": 1.0, "features_until": 1.0},
}
Row = dict[str, Any]


def batches(subject: Subject, seed: int, few: bool) -> list[Any]:
    """Training batches: (inputs, labels) where there are labels, else inputs."""
    generator = torch.Generator().manual_seed(seed)
    if subject.name == "digits":
        images, labels = plain_digits.splits()["train"]
        order = torch.randperm(len(labels), generator=generator)[: FEW if few else None]
        return [(images[part], labels[part]) for part in order.split(32 if few else 64)]
    if subject.name == "bytes":
        windows = byte_transformer.windows("train", 12 * STEPS["bytes"], seed=2000 + seed)
        return [(part[:, :-1], part[:, 1:]) for part in windows.split(12)]
    paragraphs = corpus.paragraphs("train")
    order = torch.randperm(len(paragraphs), generator=generator)[: 32 * STEPS["minilm"]].tolist()
    made = minilm.batches(
        sorted((paragraphs[i] for i in order), key=len), minilm.load_tokenizer(), max_length=LENGTH
    )
    return [made[i] for i in torch.randperm(len(made), generator=generator).tolist()]


def cut(subject: Subject, graph: compiler.Graph, width: Width, last: list[Any]) -> compiler.Result:
    """The subject at this width by second-order scores, and what follows."""
    steps: list[Any] = [
        passes.SecondOrderScore(progress=False),
        passes.PruneChannels(ratio=1 - width.channels, include=subject.kinds),
    ]
    if subject.heads:
        steps.append(passes.PruneHeads(ratio=1 - width.heads))
    pipeline = compiler.PassManager([*steps, passes.SparseToDense(), *last])
    return pipeline.run(graph, subject.calibration)


def distill(subject: Subject, data: list[Any], steps: int, seed: int, **options: Any) -> Any:
    """The training every row gets."""
    if subject.name == "minilm":
        options = {k: v for k, v in options.items() if k != "alpha"}
    return passes.Distill(
        data,
        steps=steps,
        learning_rate=RATE[subject.name],
        temperature=2.0 if subject.name == "digits" else 1.0,
        seed=seed,
        progress=False,
        **options,
    )


def from_scratch(
    small: nn.Module, data: list[Any], steps: int, rate: float, seed: int
) -> nn.Module:
    """The same small architecture with fresh weights, trained on the labels."""
    torch.manual_seed(seed)
    model = copy.deepcopy(small).train()
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        inputs, labels = data[step % len(data)]
        logits: Tensor = model(inputs)
        F.cross_entropy(logits.flatten(0, -2), labels.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def rows(subject: Subject, seed: int, known: set[tuple[Any, ...]]) -> Iterator[Row]:
    """Every row of one trained model that is not known yet."""
    graph = subject.capture()
    parameters = sum(p.numel() for p in subject.model.parameters())
    steps, rate = STEPS[subject.name], RATE[subject.name]
    labelled = subject.labelled is not None
    began = time.perf_counter()

    def row(model: nn.Module, *key: str) -> Row:
        nonlocal began
        made = dict(zip(KEY, (subject.name, seed, *key), strict=True))
        made |= {"parameters": sum(p.numel() for p in model.parameters()) / parameters}
        made |= {"seconds": time.perf_counter() - began, **subject.judge(model)}
        began = time.perf_counter()
        return made

    def missing(*key: str) -> bool:
        return (subject.name, seed, *key) not in known

    def recovered(width: Width, start: list[Any], data: Any, options: dict[str, Any]) -> nn.Module:
        last = [*start, distill(subject, data, steps, seed, **options)]
        return cut(subject, graph, width, last).model

    if missing("1", "original", "-", "-"):
        yield row(subject.model, "1", "original", "-", "-")
    sets = {"all": batches(subject, seed, few=False)}
    if subject.name == "digits":
        sets["128 labelled"] = batches(subject, seed, few=True)
    for width in subject.widths:
        if width.name not in WIDTHS[subject.name]:
            continue
        starts = {"raw": [], "repaired": [passes.Reconstruct(progress=False)]}
        for start, repair in starts.items():
            if missing(width.name, start, "-", "-"):
                yield row(cut(subject, graph, width, repair).model, width.name, start, "-", "-")
            for name, data in sets.items():
                for recipe, options in RECIPES.items():
                    if not labelled and "CE" in recipe:
                        continue
                    if missing(width.name, start, name, recipe):
                        model = recovered(width, repair, data, options)
                        yield row(model, width.name, start, name, recipe)
        if not labelled:
            continue
        small = cut(subject, graph, width, []).model
        for name, data in sets.items():
            for label, times in (("as long", 1), ("10 times as long", 10)):
                if missing(width.name, "scratch", name, label):
                    model = from_scratch(small, data, steps * times, rate, seed)
                    yield row(model, width.name, "scratch", name, label)
        if missing(width.name, "torch-pruning", "all", "CE + KD"):
            pruned = repair_peer.prune(subject, "magnitude", width, seed)
            model = _distilled(subject, pruned, sets["all"], steps, rate, seed)
            yield row(model, width.name, "torch-pruning", "all", "CE + KD")


def _distilled(
    subject: Subject, model: nn.Module, data: list[Any], steps: int, rate: float, seed: int
) -> nn.Module:
    """Another tool's small model with the training of the "CE + KD" row."""

    distill(subject, data, steps, seed, **RECIPES["CE + KD"]).train(model, subject.model)
    return model.eval()


def main() -> None:
    """Run what is asked for, saving every row; then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--resume", action="store_true", help="keep the rows there are")
    parser.add_argument("--cache", type=Path, help="folder to keep trained weights in")
    options = parser.parse_args()
    console = Console(width=150)
    path = RESULTS / "recovery.json"
    found: list[Row] = []
    if options.resume and path.exists():
        found = json.loads(path.read_text())["rows"]
    known = {tuple(row[k] for k in KEY) for row in found}
    for name in options.models:
        for seed in range(options.seeds if name != "minilm" else 1):
            for row in rows(SUBJECTS[name](seed, options.cache), seed, known):
                found.append(row)
                record("recovery", found)
                console.print(*(_short(v) for v in row.values()), highlight=False)
    for name in dict.fromkeys(row["model"] for row in found):
        console.print(_table(name, [row for row in found if row["model"] == name]))


def _table(name: str, found: list[Row]) -> Table:
    measures = [k for k in found[0] if k not in (*KEY, "parameters", "seconds")]
    table = Table(title=f"{name}: {STEPS[name]} steps")
    for column in ("width", "start", "data", "recipe", "parameters", *measures, "seeds"):
        table.add_column(column)
    groups = dict.fromkeys(
        tuple(row[k] for k in KEY if k not in ("model", "seed")) for row in found
    )
    for group in groups:
        own = [r for r in found if tuple(r[k] for k in KEY if k not in ("model", "seed")) == group]
        values = [sum(r[m] for r in own) / len(own) for m in measures]
        kept = sum(r["parameters"] for r in own) / len(own)
        table.add_row(*group, f"{kept:.1%}", *(f"{v:.3f}" for v in values), str(len(own)))
    return table


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
