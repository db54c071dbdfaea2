"""Secateur: measured times of layers."""
