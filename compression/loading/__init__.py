"""Models and data in: what is taken in, and how it is read. This part is free of torch."""
