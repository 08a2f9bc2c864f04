"""Steps as training jobs of Weights & Biases, by the client of ART."""
