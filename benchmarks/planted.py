"""Planted redundancy: how much of what is known to be superfluous does the compiler find?

    python benchmarks/planted.py [--nets digits bytes] [--seeds 3] [--kinds ...] [--cache DIR]

Trained nets are widened without a change of function, by one kind of redundancy at a time and by
all together; then all that can go at a relative output error of 1e-5 is taken out again, on
unlabelled data. Judged on held-out inputs. Writes results/planted.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from planted_nets import ALL, KINDS, NETS, PlantedNet
from record import record
from rich.console import Console
from rich.table import Table
from trained_weights import kept

from prunec import compiler, passes

ERROR = 1e-5  # of the outputs, relative to the largest


def pipeline(graph: compiler.Graph) -> list[Any]:
    """Take out what nothing is lost with, and let the rest take over."""
    target = compiler.Target(error=ERROR)
    score = passes.SecondOrderScore(progress=False)
    steps = [
        passes.DropLayers(tolerance=ERROR**2, unit="any"),
        score,
        passes.AllocateWidths(target),
    ]
    if any(d.kind == "head" for d in graph.prunable.values()):
        steps.append(passes.PruneHeads())
    repair = passes.Reconstruct(progress=False)
    return [*steps, passes.PruneChannels(), passes.SparseToDense(), repair]


def found(graph: compiler.Graph, result: compiler.Result, net: PlantedNet) -> dict[str, Any]:
    """Per planted dimension: how many entries are redundant and how many went."""
    left = set(result.graph_module.state_dict()) if result.graph_module is not None else set()
    counts: dict[str, Any] = {}
    for (tensor, kind), redundant in net.planted.items():
        dimension = next(
            d for d in graph.prunable.values() if (tensor, 0) in d.members and d.kind == kind
        )
        stays = set(result.plan.kept.get(dimension.name, range(dimension.size)))
        gone = dimension.size - len(stays - set(result.plan.dead.get(dimension.name, ())))
        if tensor not in left:  # the whole layer went
            gone = dimension.size
        counts[dimension.name] = {"size": dimension.size, "planted": redundant, "removed": gone}
    return counts


@torch.no_grad()
def output_error(net: PlantedNet, model: torch.nn.Module) -> float:
    """The largest difference from the original's outputs, relative to the largest output."""
    before, after = net.original(net.held_out), model(net.held_out)
    return float((before - after).abs().max() / before.abs().max())


def one(name: str, label: str, kinds: tuple[str, ...], seed: int, trained: Any) -> dict[str, Any]:
    """Plant these kinds in one net and take out what can go."""
    net = NETS[name](kinds, trained, seed)
    began = time.perf_counter()
    graph = compiler.capture(net.model, (net.held_out[:4],))
    result = compiler.PassManager(pipeline(graph)).run(graph, net.calibration)
    dimensions = found(graph, result, net)
    original = sum(p.numel() for p in net.original.parameters())
    return {
        "net": name,
        "kinds": label,
        "seed": seed,
        "planted": sum(d["planted"] for d in dimensions.values()),
        "found": sum(min(d["planted"], d["removed"]) for d in dimensions.values()),
        "beyond": sum(max(0, d["removed"] - d["planted"]) for d in dimensions.values()),
        "output error": output_error(net, result.model),
        "error of planting": output_error(net, net.model),
        "parameters planted": sum(p.numel() for p in net.model.parameters()) / original,
        "parameters left": sum(p.numel() for p in result.model.parameters()) / original,
        "seconds": time.perf_counter() - began,
        "dimensions": dimensions,
    }


def main() -> None:
    """Run the seeds of every net, saving every row; then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--kinds", nargs="+", choices=(*KINDS, "all"), default=(*KINDS, "all"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="folder to keep trained weights in")
    options = parser.parse_args()
    console = Console(width=150)
    rows: list[dict[str, Any]] = []
    for name in options.nets:
        for seed in range(options.seeds):
            trained = kept(options.cache, name, seed)
            for label in options.kinds:
                kinds = ALL if label == "all" else (label,)
                rows.append(one(name, label, kinds, seed, trained))
                record("planted", rows)
                console.print(_line(rows[-1]), highlight=False)
    table = Table(title=f"planted redundancy, found at a relative output error of {ERROR:g}")
    columns = ("found", "of", "share", "beyond", "largest output error", "parameters")
    for column in ("net", "kind", *columns):
        table.add_column(column)
    for name, label in dict.fromkeys((row["net"], row["kinds"]) for row in rows):
        chosen = [row for row in rows if (row["net"], row["kinds"]) == (name, label)]
        hits, planted = (sum(row[k] for row in chosen) for k in ("found", "planted"))
        before, after = (
            sum(row[f"parameters {k}"] for row in chosen) / len(chosen) for k in ("planted", "left")
        )
        table.add_row(
            name,
            label,
            str(hits),
            str(planted),
            f"{hits / planted:.1%}",
            str(sum(row["beyond"] for row in chosen)),
            f"{max(row['output error'] for row in chosen):.1e}",
            f"{before:.2f}x -> {after:.2f}x",
        )
    console.print(table)


def _line(row: Mapping[str, Any]) -> str:
    hit = f"{row['found']} of {row['planted']}, output error {row['output error']:.1e}"
    return f"{row['net']} seed {row['seed']} {row['kinds']}: {hit}, {row['seconds']:.0f} s"


if __name__ == "__main__":
    main()
