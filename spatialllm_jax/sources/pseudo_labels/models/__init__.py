"""The interfaces' real implementations, by the libraries that users have (torch, transformers)."""
