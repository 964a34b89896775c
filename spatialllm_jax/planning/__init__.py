"""What a training step needs on machines one does not have: compiled for them, read back, estimated."""
