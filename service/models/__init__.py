"""Models that users brought."""
