"""The commands that need no Ray, one module each."""
