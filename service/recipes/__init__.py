"""Secateur: recipes."""
