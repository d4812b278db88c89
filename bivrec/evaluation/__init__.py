"""Metrics, the protocol, and full-catalogue ranking."""
