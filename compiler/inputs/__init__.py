"""Inputs a model runs on: of given shapes, or from its own configuration."""
