"""Secateur: compression."""
