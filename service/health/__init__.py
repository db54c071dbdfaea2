"""Secateur: health."""
