"""Plans: what may be removed, what it comes to in tensors, and the way to JSON and back."""

from __future__ import annotations

import json

import pytest
import torch
from nets import IDS, TOKENS, captured, module
from torch import Tensor, nn

import nets_of_attention as nets_of_attention  # fills the table
import nets_of_tokens as nets_of_tokens
from prunec import passes
from prunec.compiler import PassManager, Plan, capture
from prunec.compiler.errors import PlanError


def plan_of(name: str, **kept: list[int]) -> Plan:
    return Plan(model=name, kept=dict(kept), graph=captured(name))
