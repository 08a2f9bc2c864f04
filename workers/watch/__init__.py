"""What people watch: Flower, metrics, steps on Weights & Biases."""
