"""What a smaller model costs and what it lost: quality, cost, measured speed and memory, damage."""
