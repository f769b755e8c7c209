"""How good a model is, in numbers and side by side: held-out losses, generated clips against truth and copying, and who wins."""
