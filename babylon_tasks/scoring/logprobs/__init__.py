"""Log-probabilities of recorded answers, from a server that still has the versions."""
