"""Fills the table of `nets.STRUCTURES`: importing a file of nets adds its nets."""

from __future__ import annotations

import nets_of_attention as nets_of_attention
import nets_of_calls as nets_of_calls
import nets_of_convolution as nets_of_convolution
import nets_of_encoders as nets_of_encoders
import nets_of_experts as nets_of_experts
import nets_of_mixing as nets_of_mixing
import nets_of_norms as nets_of_norms
import nets_of_odd_axes as nets_of_odd_axes
import nets_of_recurrence as nets_of_recurrence
import nets_of_selection as nets_of_selection
import nets_of_tokens as nets_of_tokens
