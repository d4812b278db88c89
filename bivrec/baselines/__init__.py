"""The systems of the comparison: floors that need no training, and neural baselines that the one loop trains."""
