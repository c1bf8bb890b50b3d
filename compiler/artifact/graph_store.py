"""A captured program as torch.export's JSON schema and safetensors: no pickle, either way.

The only file that touches torch's private serialiser; its parts used here have kept their
signatures from torch 2.9 on. `torch.export.save` would pickle custom objects and example inputs,
and `torch.export.load` unpickles them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch._export.serde import schema, serialize
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from ..cause import cause
from ..errors import ArtifactError
from .graph_screen import screen
from .tensor_store import available, load_tensors, save_tensors

GRAPH, WEIGHTS, CONSTANTS = "graph.json", "weights.safetensors", "constants.safetensors"


def store_program(program: ExportedProgram, directory: Path | str) -> None:
    """Write graph.json, weights.safetensors (parameters, persistent buffers) and
    constants.safetensors (other buffers, lifted constants) into an existing directory.

    Example inputs, guards and stack traces are left out: they hold data, source text and paths.

    Raises:
        ArtifactError: the program holds objects that are no tensors, tensors that are not plain,
            or takes or returns classes that are neither torch's nor transformers'.
    """
    directory = Path(directory)
    try:
        graph = serialize.GraphModuleSerializer(
            program.graph_signature, program.module_call_graph
        ).serialize(program.graph_module)
        ranges = serialize.serialize_range_constraints(program.range_constraints)
    except Exception as error:  # SerializeError, NotImplementedError (an unknown output class), ...
        raise ArtifactError(
            f"The graph cannot be stored: {cause(error)}; return tensors in"
            " tuples, lists or dicts, and register no custom objects in the model."
        ) from error
    major, minor = schema.SCHEMA_VERSION
    stored = schema.ExportedProgram(
        graph_module=graph,
        opset_version={"aten": torch._C._get_max_operator_version()},
        range_constraints=ranges,
        schema_version=schema.SchemaVersion(major=major, minor=minor),
        verifiers=[verifier.dialect for verifier in program.verifiers],
        torch_version=str(torch.__version__),
        guards_code=[],
    )
    plain = json.loads(serialize._to_json_bytes(stored))
    # Screened as it will be at load, so that what cannot be loaded is refused now.
    plain = screen(plain, namespaces=_namespaces(program))
    save_tensors(program.state_dict, directory / WEIGHTS)
    save_tensors(program.constants, directory / CONSTANTS)
    (directory / GRAPH).write_text(json.dumps(plain, allow_nan=False), encoding="utf-8")


def load_program(
    directory: Path | str,
    device: torch.device | str | None = None,
    *,
    namespaces: tuple[str, ...] = (),
) -> ExportedProgram:
    """The program stored in `directory`, with all of it on `device`.

    None keeps the devices it was stored with where this machine has them, and takes the CPU
    elsewhere. `namespaces`: operator libraries beyond ATen that the graph may call. The example
    inputs are zeros of the shapes it was captured with.

    Raises:
        ArtifactError: a file is missing or damaged, was written by a torch with another schema, or
            names what a captured model does not.
    """
    directory = Path(directory)
    try:
        plain = json.loads((directory / GRAPH).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(
            f"The artifact has no {GRAPH}: it is incomplete, write it again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{GRAPH} is not JSON: the artifact is damaged.") from error
    if not isinstance(plain, dict):
        raise ArtifactError(f"{GRAPH} holds no program: the artifact is damaged.")
    plain = _placed(screen(plain, namespaces), device)
    weights = load_tensors(directory / WEIGHTS, device)
    constants = load_tensors(directory / CONSTANTS, device)
    try:
        stored: Any = serialize._dict_to_dataclass(schema.ExportedProgram, plain)
        program = serialize.ExportedProgramDeserializer().deserialize(stored, weights, constants)
        # Without example inputs `program.module()` would run any shape it is given.
        program.example_inputs = _zeros(program)
    except Exception as error:
        raise ArtifactError(
            f"The stored graph cannot be rebuilt by torch {torch.__version__}: {cause(error)}; it"
            f" was written by torch {plain.get('torch_version')}."
        ) from error
    return program


def _placed(value: Any, device: torch.device | str | None) -> Any:
    """The stored program with every device in it replaced by the one it shall be on."""
    if isinstance(value, list):
        return [_placed(item, device) for item in value]
    if not isinstance(value, dict):
        return value
    placed = {}
    for key, item in value.items():
        if key in ("device", "as_device") and isinstance(item, dict):
            there = available(device or torch.device(item["type"], item["index"]))
            placed[key] = {"type": there.type, "index": there.index}
        elif key == "inputs" and "autocast" in str(value.get("target")):
            # Autocast takes its device type as a string.
            placed[key] = [_autocast_type(argument, device) for argument in _placed(item, device)]
        else:
            placed[key] = _placed(item, device)
    return placed


def _autocast_type(argument: dict[str, Any], device: torch.device | str | None) -> dict[str, Any]:
    kind = argument["arg"].get("as_string")
    if kind not in ("cpu", "cuda", "mps", "xpu"):
        return argument
    return argument | {"arg": {"as_string": available(device or kind).type}}


def _zeros(program: ExportedProgram) -> tuple[tuple[Any, ...], dict[str, Any]]:
    leaves: list[Any] = []
    placeholders = program.graph.find_nodes(op="placeholder")
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind is not InputKind.USER_INPUT:
            continue
        value = node.meta["val"]
        if isinstance(spec.arg, ConstantArgument):
            value = spec.arg.value
        elif isinstance(value, torch.Tensor):
            shape = [size if isinstance(size, int) else size.node.hint for size in value.shape]
            value = torch.zeros(shape, dtype=value.dtype, device=value.device)
        leaves.append(value)
    in_spec = program.call_spec.in_spec
    assert in_spec is not None
    return pytree.tree_unflatten(leaves, in_spec)


def _namespaces(program: ExportedProgram) -> tuple[str, ...]:
    targets = (node.target for node in program.graph.nodes)
    return tuple({t.namespace for t in targets if isinstance(t, torch._ops.OpOverload)})
