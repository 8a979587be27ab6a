"""PyTorch on the CPU as a hal backend."""
