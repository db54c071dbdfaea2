"""How quality is bought back after pruning; one file a method."""
