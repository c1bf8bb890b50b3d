"""Statistics of a model's layers on unlabelled data, and the two programs run side by side."""
