"""Architectures for `graph_breadth.py`: each is built with random weights, exported, pruned and judged."""
