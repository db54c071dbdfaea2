"""The parts of resolving a specification."""
