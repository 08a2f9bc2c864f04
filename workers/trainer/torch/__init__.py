"""Steps on this machine: LoRA with torch, transformers, peft and the loss of ART."""
