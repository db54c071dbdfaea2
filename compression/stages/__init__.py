"""The stages of a job, from loading to verification; `compression.pipeline` runs them in order."""
