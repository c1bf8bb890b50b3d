"""Fills the table of `nets.STRUCTURES`: importing a file of nets adds its nets."""

from __future__ import annotations

import nets_of_attention as nets_of_attention
import nets_of_convolution as nets_of_convolution
import nets_of_odd_axes as nets_of_odd_axes
import nets_of_tokens as nets_of_tokens
