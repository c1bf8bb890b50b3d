"""What Distill is made of: losses, the choice of one, outputs and masks, steps."""
