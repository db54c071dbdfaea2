"""One GGUF file beside the safetensors: keys, tensors, tokenizer, writing, and reading back."""
