"""Secateur: plans."""
