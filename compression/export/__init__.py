"""Formats out: deterministic safetensors, config, tokenizer, masks, model card, manifest, verification."""
