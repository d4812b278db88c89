"""Losses, the one loop, checkpoints and Runs."""
