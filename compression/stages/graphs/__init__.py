"""The stages of a job on a network given as a graph; `run.py` runs them in order. Importing this imports
nothing."""
