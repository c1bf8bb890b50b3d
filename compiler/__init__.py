"""prunec.compiler: capture a model as a graph, prune it by passes, get a smaller dense model.

from prunec import compiler, passes
result = compiler.compile(model, (x,), target=compiler.Target(speedup=2.0))
"""

from .artifact.load import load
from .capture.capture import capture
from .check_pass import check_pass
from .driver import compile
from .errors import PrunecError
from .inference.dimensions import Dimension
from .inference.graph import Graph
from .inference.rule import RuleContext, op_rule
from .pass_class import Pass, PassResult
from .passmanager import PassManager
from .plan import Plan
from .report import Report
from .result import Result
from .sweep import Sweep, sweep
from .target import Target

__all__ = [
    "Dimension",
    "Graph",
    "Pass",
    "PassManager",
    "PassResult",
    "Plan",
    "PrunecError",
    "Report",
    "Result",
    "RuleContext",
    "Sweep",
    "Target",
    "capture",
    "check_pass",
    "compile",
    "load",
    "op_rule",
    "sweep",
]
