"""Commits: what a run needs to go on, written so that a half-written one is never chosen."""
