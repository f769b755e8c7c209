"""A run in virtual time: what faults, restarts and resizes would cost, without a cluster. Pure: no Ray, no torch, no clock."""
