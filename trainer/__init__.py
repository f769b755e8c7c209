"""The training loop and everything inside one process group. Importing this package imports nothing heavy."""
