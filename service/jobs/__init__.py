"""Jobs: their states, their rows and the calls on them."""
