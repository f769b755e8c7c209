"""The command line's commands that need no Ray: one short file each, called by main.py."""
