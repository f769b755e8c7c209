"""Where a run's wall time went, and whether it learns, as the report tells it."""

from __future__ import annotations
