"""The report of a job: JSON with a versioned schema, and one self-contained HTML page. Free of torch."""
