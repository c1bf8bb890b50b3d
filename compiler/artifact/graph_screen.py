"""What a stored graph may name: read before torch's deserialiser, which trusts its input.

That deserialiser evaluates symbolic expressions, resolves dotted names under `torch`, imports
modules named in tree specs, and torch.fx writes names into source that it compiles. Here every
string is held against what its place may hold; whatever does not fit is refused.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.utils._sympy import functions as sympy_functions

from ..errors import ArtifactError

_WORD = re.compile(r"[^\W\d]\w*")
_PATH = re.compile(r"[^\"'\\{}\x00-\x1f]*")
_PLAIN = re.compile(r"[\w.+:-]*")
_SYMBOL = re.compile(r"z?[su]f?\d+")
_NUMBER = re.compile(r"[-+]?\d+\.?\d*(e[-+]?\d+)?")
_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)(\.\w+)?")
_TRANSFORMERS = re.compile(r"(transformers(?:\.\w+)+)\.\w+")

_NAMESPACES = frozenset({"aten", "prims", "torchvision"})
_REACH_OUTSIDE = frozenset({"save", "from_file", "_print", "warn"})
_HIGHER_ORDER = re.compile(
    r"cond|while_loop|scan|map_impl|wrap_with_set_grad_enabled|wrap_with_autocast"
)
_PYTHON = re.compile(
    r"math\.trunc|torch\.sym_(not|int|float|ite|max|min|sqrt)|_operator\.(add|sub|mul|truediv"
    r"|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|lshift|rshift|getitem)"
)
_CONTAINERS = frozenset(
    {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
)
_FUNCTIONS = re.compile(
    "|".join(sympy_functions.__all__) + "|Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Abs"
    "|floor|ceiling|And|Or|Not|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan"
    "|GreaterThan"
)
_CONSTANTS = frozenset({"true", "false", "oo", "int_oo"})
_SYNTAX = (ast.Expression, ast.keyword, ast.UnaryOp, ast.USub, ast.Load)

# What a string may be goes by its key; a key that is not listed holds a plain word or version.
_NAME_KEYS = frozenset({"name", "as_name", "user_input_name", "forward_arg_names"})
_PATH_KEYS = frozenset({"parameter_name", "buffer_name", "tensor_constant_name", "fqn"})
_TEXT_KEYS = frozenset({"as_string", "as_strings", "nn_module_stack"})
_OBJECT_KEYS = frozenset({"custom_obj", "as_custom_obj", "custom_obj_values", "class_fqn"})


def screen(program: dict[str, Any], namespaces: tuple[str, ...] = ()) -> dict[str, Any]:
    """The stored program without what is not needed, after checking all that is.

    Guards (source text) and debugging metadata (paths of the machine that wrote it) are dropped.
    Operators come from ATen, prims and torchvision, and from `namespaces`, whose extension the
    caller has imported. transformers' output classes that the result has are imported.

    Raises:
        ArtifactError: something in it is not what a captured model holds.
    """
    return _screened(program | {"guards_code": []}, "program", _NAMESPACES | set(namespaces))


def _screened(value: Any, key: str, namespaces: frozenset[str]) -> Any:
    if isinstance(value, dict):
        if key == "metadata":
            value = {k: v for k, v in value.items() if k == "nn_module_stack"}
        for name, item in value.items():
            if name in _OBJECT_KEYS and item:
                raise _refused("a custom object", name)
            _match(_PLAIN, name, key)
        return {name: _screened(item, name, namespaces) for name, item in value.items()}
    if isinstance(value, list):
        return [_screened(item, key, namespaces) for item in value]
    if not isinstance(value, str):
        return value
    if key in ("target", "as_operator"):
        _check_operator(value, namespaces)
    elif key == "expr_str":
        _check_expression(value)
    elif key in ("in_spec", "out_spec"):
        _check_tree(value)
    elif key in _NAME_KEYS:
        _match(_WORD, value or "_", key)
    elif key not in _TEXT_KEYS:
        _match(_PATH if key in _PATH_KEYS else _PLAIN, value, key)
    return value


def _check_operator(target: str, namespaces: frozenset[str]) -> None:
    if _PYTHON.fullmatch(target):
        return
    match = _OPERATOR.fullmatch(target)
    if match is None or match[2] in _REACH_OUTSIDE:
        raise _refused(f"the operator {target[:80]!r}", "a node")
    if match[1] != "higher_order" and match[1] not in namespaces:
        raise ArtifactError(
            f"The stored graph calls {target}: if you trust that extension, import it and name it"
            f" in namespaces=('{match[1]}',)."
        )
    if match[1] == "higher_order" and not _HIGHER_ORDER.fullmatch(match[2]):
        raise _refused(f"the operator {target!r}", "a node")
    found: Any = torch.ops
    for part in target.split(".")[2:]:
        found = getattr(found, part, None)
    # torch.ops has methods too, `load_library` among them: an operator is not just any callable.
    if not isinstance(found, (torch._ops.OpOverload, torch._ops.HigherOrderOperator)):
        raise ArtifactError(
            f"The stored graph calls {target}, which torch {torch.__version__} does not have: load"
            " it with the version that wrote it, or import the extension that defines it."
        )


def _check_expression(text: str) -> None:
    """A size as sympy prints it: known functions over symbols and numbers, and nothing else."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError):
        raise _refused(f"the expression {text[:80]!r}", "a size") from None
    passed: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            form = _SYMBOL if node.func.id == "Symbol" else _NUMBER
            passed |= {node, node.func} if _FUNCTIONS.fullmatch(node.func.id) else set()
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    passed |= {argument} if form.fullmatch(argument.value) else set()
        elif isinstance(node, ast.Name):
            passed |= {node} if node.id in _CONSTANTS else set()
        elif isinstance(node, ast.Constant) and not isinstance(node.value, (str, bytes)):
            passed.add(node)
        if node not in passed and not isinstance(node, _SYNTAX):
            raise _refused(f"the expression {text[:80]!r}", "a size")


def _check_tree(text: str) -> None:
    """A tree spec of containers that torch or transformers defines, importing the latter."""
    try:
        _, tree = json.loads(text)
        _check_branch(tree)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _refused("an unreadable tree", "the call") from error


def _check_branch(branch: dict[str, Any]) -> None:
    kind, context = branch["type"], branch["context"]
    keys = json.loads(context) if context is not None else None
    # torch imports the module of an {"__enum__": ...} it finds here.
    for item in keys if isinstance(keys, list) else [keys]:
        if isinstance(item, str):
            _match(_PATH, item, "a key")
        elif not (item is None or isinstance(item, (int, float))):
            raise _refused(f"the key {item!r}", "the call")
    if kind is not None and kind not in _CONTAINERS:
        _import_output_class(kind)
    for child in branch["children_spec"]:
        _check_branch(child)


def _import_output_class(kind: str) -> None:
    match = _TRANSFORMERS.fullmatch(kind)
    if match is not None:
        try:
            importlib.import_module(match[1])
        except ImportError as error:
            raise ArtifactError(
                f"The stored graph returns {kind}, which cannot be imported: install the"
                " transformers version that wrote it."
            ) from error
        if kind in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE:
            return
    raise ArtifactError(
        f"The stored graph takes or returns a {kind}: only tuples, lists, dicts and transformers'"
        " own output classes are stored; return one of those."
    )


def _match(form: re.Pattern[str], text: str, key: str) -> None:
    if not form.fullmatch(text):
        raise _refused(f"{text[:80]!r}", key)


def _refused(what: str, where: str) -> ArtifactError:
    return ArtifactError(
        f"The graph has {what} for {where}, which is not stored: rename or replace it in the model;"
        " an artifact that holds it is damaged or forged and must not be used."
    )
