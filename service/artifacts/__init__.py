"""Artifacts: what jobs published."""
