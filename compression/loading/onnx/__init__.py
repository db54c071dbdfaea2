"""ONNX models of strangers, read by their structure alone: no torch, no onnx package, no weight in memory."""
