"""The command: prunec compile | explain | bench | verify."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import torch
import typer

from .capture.capture import capture
from .commands.bench import bench_command
from .commands.compile import CompileOptions, compile_command
from .commands.interruption import interruptible
from .commands.open_model import open_model
from .commands.verify import verify_command
from .console import plain_console
from .errors import InterruptedCompile, PrunecError

app = typer.Typer(
    help="Smaller dense PyTorch and ONNX models: proven equal to their masked original, measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = plain_console(width=None if sys.stdout.isatty() else 120)  # files and pipes: whole tables
# Options that only some of a compile reads, by their names here.
OF_A_COMPILE = ("emit", "rounds", "checkpoint", "floor", "no_measure", "strict")
OF_DATA = ("task", "columns", "max_length", "pad_to", "batch_size", "max_samples")
OF_TRAINING = ("split", "steps", "learning_rate")
INTERRUPTED = 130  # the exit code of a process ended by Ctrl-C

Model = Annotated[
    str,
    typer.Argument(
        help="directory, hub id, module:factory, timm:NAME, torchvision:NAME, .pt2 or artifact",
        metavar="MODEL",
    ),
]
Inputs = Annotated[list[str] | None, typer.Option("--input", help="3x224x224 or ids:2x128")]
Outputs = Annotated[list[str] | None, typer.Option("--output", help="an output that matters")]
UntieTables = Annotated[
    bool,
    typer.Option("--untie-tables", help="layers that read one table (rotary) are cut on their own"),
]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]


@app.callback()
def options(debug: Debug = False) -> None:
    """Errors are one sentence; --debug shows where they come from."""
    state["debug"] = debug


state: dict[str, bool] = {"debug": False}


@app.command("compile")
def compile_(
    context: typer.Context,
    model: Model,
    target: Annotated[
        str | None,
        typer.Option(
            help="speedup=2, latency_ms=3, params=0.5, macs=0.5, bytes=0.5, width=0.5 or error=1e-3"
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(help="several targets, a table and a picture: 1.3,1.5,2 or params=0.7,0.5"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="file (txt, csv, json, parquet), folder of images, datasets id, or module:factory;"
            " to recover and prove on"
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="of DATA")] = "train",
    task: Annotated[
        str | None, typer.Option(help="what DATA is read for; by default the model's class says")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column", help="ROLE=COLUMN of DATA: text, pair, tokens, label, target, image"
        ),
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="tokens a text is cut to", min=1)] = None,
    pad_to: Annotated[
        int | None, typer.Option(help="pad every text to so many tokens", min=1)
    ] = None,
    eval_data: Annotated[
        str | None, typer.Option(help="data to judge original and result on, by the task's metric")
    ] = None,
    eval_split: Annotated[
        str | None, typer.Option(help="of the data to judge on; by itself, of DATA")
    ] = None,
    out: Annotated[pathlib.Path, typer.Option(help="artifact directory")] = pathlib.Path(
        "prunec-out"
    ),
    recipe: Annotated[pathlib.Path | None, typer.Option(help="TOML list of passes")] = None,
    emit: Annotated[
        str, typer.Option(help="torch, onnx, int8 (or int8-static); with commas between them")
    ] = "torch",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1")] = None,
    runtime: Annotated[
        str,
        typer.Option(
            help="torch, compile or onnxruntime: where a speed target holds, and is timed"
        ),
    ] = "torch",
    batch: Annotated[
        int | None, typer.Option(help="batch that --runtime is timed at", min=1)
    ] = None,
    inputs: Inputs = None,
    outputs: Outputs = None,
    untie_tables: UntieTables = False,
    keep_class: Annotated[
        str, typer.Option(help="auto: the user's class where that costs little; always; never")
    ] = "auto",
    no_try: Annotated[
        bool, typer.Option("--no-try", help="do not load the artifact again to see that it loads")
    ] = False,
    exclude: Annotated[list[str] | None, typer.Option(help="dimensions left alone")] = None,
    round_to: Annotated[
        int | None, typer.Option(help="keep widths that are multiples of it", min=1)
    ] = None,
    uniform: Annotated[
        bool, typer.Option("--uniform", help="repeated layers keep equal widths")
    ] = False,
    depth: Annotated[
        float | None, typer.Option(help="largest share of residual branches that may go whole")
    ] = None,
    rounds: Annotated[
        int, typer.Option(help="reach the target in so many steps of cutting and training", min=1)
    ] = 1,
    checkpoint: Annotated[
        pathlib.Path | None, typer.Option(help="directory by which the same command goes on")
    ] = None,
    best_effort: Annotated[
        bool, typer.Option("--best-effort", help="a target out of reach gives the best there is")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(help="recovery steps on DATA; 0: no training", min=0)
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="of the recovery")] = None,
    batch_size: Annotated[int, typer.Option(help="samples a batch of DATA", min=1)] = 32,
    max_samples: Annotated[int | None, typer.Option(help="of DATA", min=1)] = None,
    evaluate: Annotated[
        str | None, typer.Option(help="module:function on a model, higher is better")
    ] = None,
    floor: Annotated[
        float,
        typer.Option(
            help="share of the original's value below which nothing is written", min=0, max=1
        ),
    ] = 0.97,
    dry_run: Annotated[bool, typer.Option(help="plan and count, write nothing")] = False,
    no_measure: Annotated[bool, typer.Option(help="skip the timings")] = False,
    strict: Annotated[bool, typer.Option(help="a check that proves nothing is an error")] = False,
) -> None:
    """Compress MODEL to a target and write the artifact."""
    if (target is None) == (sweep is None):
        raise typer.BadParameter("give one of --target and --sweep", param_hint="--target")
    if sweep is not None:
        _name_unused(context, "with --sweep", (*OF_A_COMPILE, "dry_run"))
        asked = {"--steps": steps, "--learning-rate": learning_rate}
        trained = [word for word, given in asked.items() if given]
        if trained:
            console.print(
                f"note: a sweep trains nothing; {' and '.join(trained)} will count when one of its "
                "targets is compiled with --target"
            )
    elif dry_run:
        _name_unused(context, "with --dry-run", ("rounds", "checkpoint"))
    if data is None:
        training = OF_TRAINING if sweep is None else ("split",)
        unread = (*training, *(OF_DATA if eval_data is None else ()))
        _name_unused(context, "without --data", unread)
    elif steps == 0:
        _name_unused(context, "with --steps 0", ("learning_rate",))
    compile_command(
        CompileOptions(
            model=model,
            target=target,
            sweep=sweep,
            uniform=uniform,
            depth=depth,
            rounds=rounds,
            checkpoint=checkpoint,
            best_effort=best_effort,
            data=data,
            split=split,
            task=task,
            columns=columns,
            max_length=max_length,
            pad_to=pad_to,
            eval_data=eval_data,
            eval_split=eval_split,
            out=out,
            recipe=recipe,
            emit=emit,
            device=device,
            runtime=runtime,
            batch=batch,
            inputs=inputs,
            outputs=outputs,
            untie_tables=untie_tables,
            keep_class=keep_class,
            exclude=exclude,
            round_to=round_to,
            steps=steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_samples=max_samples,
            evaluate=evaluate,
            floor=floor,
            dry_run=dry_run,
            measure=not no_measure,
            strict=strict,
            try_load=not no_try,
        ),
        console,
    )


def _name_unused(context: typer.Context, mode: str, names: Sequence[str]) -> None:
    """Say which of these options, by their names here, were given and change nothing."""
    words = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    given = [n for n in names if str(context.get_parameter_source(n)).endswith("COMMANDLINE")]
    if given:
        console.print(f"note: {mode}, nothing comes of {', '.join(words[n] for n in given)}")


@app.command()
def explain(
    model: Model,
    inputs: Inputs = None,
    outputs: Outputs = None,
    untie_tables: UntieTables = False,
    members: Annotated[
        bool, typer.Option("--members", help="list all tensor axes of a dimension")
    ] = False,
    text: Annotated[
        bool, typer.Option("--graph", help="print the graph instead, with every axis's dimensions")
    ] = False,
) -> None:
    """List every dimension of MODEL: kind, size, members, exact or norm-coupled, or why blocked."""
    source = open_model(model, inputs)
    graph = capture(
        source.model.eval(),
        source.args,
        kwargs=source.kwargs,
        outputs=outputs,
        untie_tables=untie_tables,
    )
    console.print(graph.text() if text else graph.explain(members), soft_wrap=True)


@app.command()
def bench(
    before: Annotated[str, typer.Argument(metavar="A", help="a MODEL or an .onnx file")],
    after: Annotated[str, typer.Argument(metavar="B", help="a MODEL or an .onnx file")],
    runtime: Annotated[str, typer.Option(help="torch, compile or onnxruntime")] = "torch",
    device: str = "cpu",
    batch: Annotated[
        list[int] | None, typer.Option(help="batch sizes; default 1 and 32", min=1)
    ] = None,
    inputs: Inputs = None,
) -> None:
    """Time A and B side by side, interleaved."""
    bench_command(before, after, runtime, device, batch, inputs, console)


@app.command()
def verify(
    directory: Annotated[pathlib.Path, typer.Argument(metavar="DIR", help="an artifact")],
    original: Annotated[
        str | None, typer.Option(help="MODEL it was made from: re-proves all")
    ] = None,
    inputs: Inputs = None,
    strict: Annotated[bool, typer.Option(help="a check that proves nothing is an error")] = False,
) -> None:
    """Check an artifact: checksums, structure, ONNX parity; with --original, the whole proof."""
    verify_command(directory, original, inputs, console, strict)


def main(arguments: list[str] | None = None) -> None:
    """Run the command: errors raised on purpose end with one sentence and exit code 1, Ctrl-C and
    SIGTERM with 130."""
    torch.set_warn_always(False)
    with interruptible() as interruption:
        try:
            code = app(args=arguments, standalone_mode=False)
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except InterruptedCompile as error:
            _say(str(error))
            sys.exit(INTERRUPTED)
        except Exception as error:
            if not interruption.asked:
                _fail(error)
            code = INTERRUPTED
    if code == INTERRUPTED:  # typer turns the exception into this code
        _say("interrupted; nothing was written")
    if code:
        sys.exit(code)


def _fail(error: Exception) -> NoReturn:
    usage: Any = getattr(error, "exit_code", None)
    if usage is not None and hasattr(error, "format_message"):
        _say(error.format_message())  # type: ignore[attr-defined]
        sys.exit(usage)
    if state["debug"]:
        raise error
    text = str(error) if isinstance(error, PrunecError) else f"{type(error).__name__}: {error}"
    _say(text + ("" if isinstance(error, PrunecError) else " (run with --debug for the traceback)"))
    sys.exit(1)


def _say(text: str) -> None:
    plain_console(stderr=True).print(f"prunec: {text}", soft_wrap=True)


if __name__ == "__main__":
    main()
