"""The planner: what a stage asks of a device under a layout (memory.py), how long it takes (cost.py), and which layout to choose (search.py)."""
