"""Secateur: secateur."""
