"""Secateur: ui."""
