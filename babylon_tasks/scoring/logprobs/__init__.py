"""Log-probabilities of recorded answers, told by a server that still has the versions."""
