"""Find the fastest accurate way to run a trained PyTorch model on this CPU, and run it."""
