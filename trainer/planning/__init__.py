"""The planner: what a device holds under a layout (memory.py), how long a step takes (cost.py), and which layout to choose (search.py)."""
