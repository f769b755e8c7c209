import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.duplicates import duplicates
from data_pipeline.filters import perceptual_hash

from .conftest import moving_frames


def distance(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


@given(st.lists(st.integers(0, 2**24 - 1), max_size=30), st.integers(0, 30))
@settings(deadline=None)
def test_what_is_left_out_is_near_something_kept_and_what_is_kept_is_not(values: list[int], limit: int) -> None:
    """Against the plain definition: clip by clip, left out if near one that was kept before."""
    hashes = [f"{value:06x}" for value in values]
    kept: list[int] = []
    for position, value in enumerate(hashes):
        if all(distance(value, hashes[earlier]) > limit for earlier in kept):
            kept.append(position)
    assert duplicates(hashes, limit) == [position for position in range(len(hashes)) if position not in kept]


def test_ten_thousand_unlike_clips_with_a_few_copies_take_no_ten_thousand_squared_comparisons() -> None:
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 256, (10_000, 24), dtype=np.uint8)
    rows[[20, 9_999]] = rows[[3, 7]]
    rows[9_999, 0] ^= 0b101
    assert duplicates([row.tobytes().hex() for row in rows], limit=6) == [20, 9_999]


def test_the_hash_survives_noise_brightness_and_size_and_tells_clips_apart() -> None:
    clip = moving_frames(9, 64, 96)
    noisy = np.clip(clip + np.random.default_rng(0).normal(8, 4, clip.shape), 0, 255).astype(np.uint8)
    half = clip.reshape(9, 32, 2, 48, 2, 3).mean(axis=(2, 4)).astype(np.uint8)
    assert len(perceptual_hash(clip)) == 48
    assert distance(perceptual_hash(clip), perceptual_hash(noisy)) <= 8
    assert distance(perceptual_hash(clip), perceptual_hash(half)) <= 8
    others = [moving_frames(9, 64, 96, seed=seed) for seed in (1, 2)] + [clip[:, :, ::-1]]
    assert all(distance(perceptual_hash(clip), perceptual_hash(other)) > 24 for other in others)


def test_flat_areas_have_no_bits_to_flip() -> None:
    grey = np.full((3, 20, 30, 3), 128, np.uint8)
    noise = np.random.default_rng(0).integers(-1, 2, grey.shape)
    assert perceptual_hash((grey + noise).astype(np.uint8)) == "0" * 48
