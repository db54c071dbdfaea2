"""Models whose layers have widths of their own: how they are written, and the code that goes with them."""
