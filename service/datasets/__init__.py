"""Datasets that users brought."""
