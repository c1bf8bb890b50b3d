"""Names of modules that are no Python names, as torch's own unlifting needs them: it writes paths
into source."""

from __future__ import annotations

from typing import Any

from ..ir.module_paths import is_plain

_STAND_IN = "prunec_plain_{}"


def name_plainly(exported: Any) -> dict[str, str]:
    """Rename, in an exported program, the tensors whose path may not stand in source; returns what
    each new name stands for."""
    signature = exported.graph_signature
    odd = [
        spec.target
        for spec in signature.input_specs
        if isinstance(spec.target, str) and not is_plain(spec.target)
    ]
    new = {name: _STAND_IN.format(i) for i, name in enumerate(dict.fromkeys(odd))}
    if not new:
        return {}
    for spec in (*signature.input_specs, *signature.output_specs):
        if spec.target in new:
            spec.target = new[spec.target]
    for table in (exported.state_dict, exported.constants):
        for name in [name for name in table if name in new]:
            table[new[name]] = table.pop(name)
    return {stand_in: name for name, stand_in in new.items()}
