"""What the command is given: MODEL, its example inputs, DATA."""
