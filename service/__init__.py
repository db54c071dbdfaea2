"""Secateur: service."""
