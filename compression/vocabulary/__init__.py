"""Vocabularies: what a tokenizer's tokens are made of, which of them can stay alone, and the files without
the rest. No torch."""
