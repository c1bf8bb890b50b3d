"""What training brings back: from raw and repaired cuts, by labels, by a teacher, in schedules.

    python benchmarks/recovery.py [--models digits bytes minilm] [--seeds 3] [--resume]

Each trained model is cut to the widths of the repair benchmark by second-order scores, then trained
for the same steps by each recipe: labels, teacher, both, teacher and values inside; in one go, in
three rounds of a third of the steps each, and with a mask that grows over half of them. Beside it
the same small architecture trained from scratch, for as long and for ten times as long (the
embedder, which has no labels, by the teacher and as long), and torch-pruning's cut with the same
training. Judged on held-out inputs. Writes results/recovery.json, row by row, and
results/recovery.png.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import byte_transformer
import corpus
import minilm
import plain_digits
import repair_peer
import torch
from record import RESULTS
from recovery_table import KEY, plot, print_tables
from repair_subjects import LENGTH, SUBJECTS, Subject, Width
from rich.console import Console
from rows import Row, Rows
from torch import Tensor, nn
from torch.nn import functional as F

from prunec import compiler, passes

FEW = 128  # labelled samples of the digits
WIDTHS = {"digits": ("1/4", "1/8"), "bytes": ("1/2", "1/4"), "minilm": ("2/3, 1/2",)}
STEPS = {"digits": 300, "bytes": 200, "minilm": 300}
RATE = {"digits": 2e-3, "bytes": 1e-3, "minilm": 3e-4}
TEMPERATURE = {"digits": 2.0, "bytes": 1.0, "minilm": 1.0}
ROUNDS = 3
RECIPES: dict[str, dict[str, Any]] = {
    "CE": {"alpha": 0.0, "features": 0.0},
    "KD": {"alpha": 1.0, "features": 0.0},
    "CE + KD": {"alpha": 0.5, "features": 0.0},
    "KD + insides": {"alpha": 1.0, "features": 1.0, "features_until": 0.5},
    "KD + insides to the end": {"alpha": 1.0, "features": 1.0, "features_until": 1.0},
}
BEST = RECIPES["KD + insides to the end"]  # what schedules are compared with
LABELLED = tuple(RECIPES)
UNLABELLED = {  # by the start; each row of the embedder takes ten minutes
    "raw": ("KD + insides to the end",),
    "repaired": ("KD", "KD + insides to the end"),
}


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


def cut(
    subject: Subject, graph: compiler.Graph, width: Width, last: list[Any], start: Any = None
) -> compiler.Result:
    """The subject at this width by second-order scores, and what follows."""
    steps: list[Any] = [
        passes.SecondOrderScore(progress=False),
        passes.PruneChannels(ratio=1 - width.channels, include=subject.kinds),
    ]
    if subject.heads:
        steps.append(passes.PruneHeads(ratio=1 - width.heads))
    pipeline = compiler.PassManager([*steps, passes.SparseToDense(), *last])
    return pipeline.run(graph, subject.calibration, start=start)


def distill(subject: Subject, data: list[Any], steps: int, seed: int, **options: Any) -> Any:
    """The training every row gets."""
    if subject.name == "minilm":
        options = {k: v for k, v in options.items() if k != "alpha"}
    return passes.Distill(
        data,
        steps=steps,
        learning_rate=RATE[subject.name],
        temperature=TEMPERATURE[subject.name],
        seed=seed,
        progress=False,
        **options,
    )


def in_rounds(
    subject: Subject, graph: compiler.Graph, width: Width, data: list[Any], steps: int, seed: int
) -> nn.Module:
    """Cut in rounds of equal factors, each repaired and trained for its share of the steps."""
    result: compiler.Result | None = None
    for number in range(1, ROUNDS + 1):
        share = number / ROUNDS
        own = Width("", width.heads**share, width.channels**share)
        first, size = len(data) * (number - 1) // ROUNDS, max(1, len(data) // ROUNDS)
        part = data if subject.name == "digits" else data[first : first + size]
        train = distill(subject, part, steps // ROUNDS, seed, **BEST)
        result = cut(subject, graph, own, [passes.Reconstruct(progress=False), train], result)
    assert result is not None
    return result.model


def fresh(small: nn.Module, seed: int) -> nn.Module:
    """The same small architecture with new weights."""
    torch.manual_seed(seed)
    model = copy.deepcopy(small)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
        # transformers draws embeddings narrower than torch does
        if isinstance(module, nn.Embedding) and isinstance(model, minilm.SentenceEmbedder):
            nn.init.normal_(module.weight, std=model.encoder.config.initializer_range)  # type: ignore
    return model


def from_scratch(
    small: nn.Module, data: list[Any], steps: int, rate: float, seed: int
) -> nn.Module:
    """The same small architecture with new weights, trained on the labels."""
    model = fresh(small, seed).train()
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


def measure(subject: Subject, seed: int, rows: Rows) -> None:
    """Every row of one trained model that is not known yet."""
    graph = subject.capture()
    parameters = sum(p.numel() for p in subject.model.parameters())
    steps, rate = STEPS[subject.name], RATE[subject.name]
    labelled = subject.labelled is not None

    def add(make: Any, *key: str) -> None:
        if not rows.missing(subject.name, seed, *key):
            return
        model = make()
        row: Row = dict(zip(KEY, (subject.name, seed, *key), strict=True))
        row["parameters"] = sum(p.numel() for p in model.parameters()) / parameters
        rows.add(row | subject.judge(model))

    def trained(start: list[Any], data: list[Any], **options: Any) -> nn.Module:
        last = [*start, distill(subject, data, steps, seed, **options)]
        return cut(subject, graph, width, last).model

    def taught(small: nn.Module, recipe: str) -> nn.Module:
        options = RECIPES[recipe]
        distill(subject, sets["all"], steps, seed, **options).train(small, subject.model)
        return small.eval()

    def by_peer(recipe: str) -> nn.Module:
        return taught(repair_peer.prune(subject, "magnitude", width, seed), recipe)

    add(lambda: subject.model, "1", "original", "-", "-")
    sets = {"all": batches(subject, seed, few=False)}
    if subject.name == "digits":
        sets["128 labelled"] = batches(subject, seed, few=True)
    for width in (w for w in subject.widths if w.name in WIDTHS[subject.name]):
        starts = {"raw": [], "repaired": [passes.Reconstruct(progress=False)]}
        for start, repair in starts.items():
            add(lambda: cut(subject, graph, width, repair).model, width.name, start, "-", "-")  # noqa: B023
            for name, data in sets.items():
                for recipe, options in RECIPES.items():
                    if recipe in (LABELLED if labelled else UNLABELLED[start]):
                        make = lambda: trained(repair, data, **options)  # noqa: B023, E731
                        add(make, width.name, start, name, recipe)
        rounds = lambda: in_rounds(subject, graph, width, sets["all"], steps, seed)  # noqa: B023, E731
        add(rounds, width.name, f"{ROUNDS} rounds", "all", "KD + insides to the end")
        grown = lambda: trained([], sets["all"], gradual=0.5, **BEST)  # noqa: E731
        add(grown, width.name, "gradual", "all", "KD + insides to the end")
        small = lambda: cut(subject, graph, width, []).model  # noqa: B023, E731
        for name, data in sets.items() if labelled else ():
            for label, times in (("as long", 1), ("10 times as long", 10)):
                make = lambda: from_scratch(small(), data, steps * times, rate, seed)  # noqa: B023, E731
                add(make, width.name, "scratch", name, label)
        if not labelled:  # nothing but the teacher to learn from
            add(lambda: taught(fresh(small(), seed), "KD"), width.name, "scratch", "all", "KD")  # noqa: B023
        recipe = "CE + KD" if labelled else "KD"
        add(lambda: by_peer(recipe), width.name, "torch-pruning", "all", recipe)  # noqa: B023


def main() -> None:
    """Run what is asked for, saving every row; then print the tables and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--resume", action="store_true", help="keep the rows there are")
    parser.add_argument("--cache", type=Path, help="folder to keep trained weights in")
    options = parser.parse_args()
    rows = Rows("recovery", KEY, options.resume)
    for name in options.models:
        for seed in range(options.seeds if name != "minilm" else 1):
            measure(SUBJECTS[name](seed, options.cache), seed, rows)
    print_tables(rows.found, STEPS, Console(width=150))
    plot(rows.found, RESULTS / "recovery.png")


if __name__ == "__main__":
    main()
