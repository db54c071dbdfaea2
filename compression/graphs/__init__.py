"""Networks as graphs of ONNX operators: read, run in torch, find what hangs together, cut, write back."""
