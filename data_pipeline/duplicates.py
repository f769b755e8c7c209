"""Near-duplicates among all clips of a bucket, from their perceptual hashes. manifest.py asks once the whole set is known;
pure, and exact: no pair within the limit is missed."""

from collections.abc import Sequence

import numpy as np

PAIRS_AT_ONCE = 1 << 20  # compared in one go: bounds memory


def duplicates(hashes: Sequence[str], limit: int) -> list[int]:
    """The positions of clips whose hash (hex, all of one length) differs by at most `limit` bits from one that is kept.

    Earlier clips are kept. Hashes within `limit` bits share at least one of limit + 1 parts, so only those that do are
    compared: about n * (limit + 1) comparisons for unlike clips, instead of n * n.
    """
    if not hashes:
        return []
    rows = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(len(hashes), -1)
    unique, first = np.unique(rows, axis=0, return_index=True)
    order = np.argsort(first)
    unique, first = unique[order], first[order]
    near: dict[int, list[int]] = {}
    for one, other in _close_pairs(unique, limit):
        near.setdefault(other, []).append(one)
    left_out: set[int] = set()
    for later in sorted(near):
        if any(earlier not in left_out for earlier in near[later]):
            left_out.add(later)
    kept = set(first.tolist()) - {int(first[row]) for row in left_out}
    return [position for position in range(len(hashes)) if position not in kept]


def _close_pairs(hashes: np.ndarray, limit: int) -> set[tuple[int, int]]:
    """(i, j), i < j, of all rows [N, bytes] that differ by at most `limit` bits."""
    bits = np.unpackbits(hashes, axis=1)
    if limit >= bits.shape[1]:
        return {(one, other) for other in range(len(hashes)) for one in range(other)}
    pairs: set[tuple[int, int]] = set()
    for part in np.array_split(bits, limit + 1, axis=1):
        keys = np.packbits(part, axis=1)
        _, group, sizes = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
        members = np.argsort(group.ravel(), kind="stable")
        for rows in np.split(members, np.cumsum(sizes)[:-1]):
            for start in range(0, len(rows) if len(rows) > 1 else 0, step := max(1, PAIRS_AT_ONCE // len(rows))):
                distances = np.bitwise_count(hashes[rows[start : start + step], None] ^ hashes[rows]).sum(axis=2, dtype=np.int64)
                one, other = np.nonzero(distances <= limit)
                pairs |= {(int(rows[start + i]), int(rows[j])) for i, j in zip(one, other, strict=True) if rows[start + i] < rows[j]}
    return pairs
