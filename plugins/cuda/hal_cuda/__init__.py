"""PyTorch on NVIDIA GPUs as a hal backend."""
