"""ONNX Runtime as a hal backend."""
