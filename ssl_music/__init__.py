"""Self-supervised pre-training and probing of music encoders in JAX."""
