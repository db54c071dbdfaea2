"""Single weights of a graph: its matrices, what calibration knows of their inputs, and pruning them.
Importing this imports nothing."""
