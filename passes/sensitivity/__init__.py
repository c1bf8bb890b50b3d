"""What the layers that read a dimension lose when entries of it go, from their inputs' moments."""
