"""What is done to an untouched model from outside, always in this order: activation checkpointing, compilation, then the engine."""
