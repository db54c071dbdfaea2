"""Secateur: workers."""
