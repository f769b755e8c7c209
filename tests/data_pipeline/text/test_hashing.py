import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.text.hashing import POSITION_SCALE, HashingText

TEXT = HashingText(width=64, max_tokens=24)


@given(st.text(max_size=200))
def test_any_caption_gives_between_one_and_k_finite_tokens(caption: str) -> None:
    vectors = TEXT.encode(caption)
    assert 1 <= len(vectors) <= 24
    assert vectors.shape[1] == 64
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()


def test_words_and_punctuation_are_the_tokens() -> None:
    assert [len(TEXT.encode(caption)) for caption in ("", "a cat", "A cat, asleep!", "word " * 99)] == [1, 2, 5, 24]


def test_case_is_ignored_and_order_is_not() -> None:
    np.testing.assert_array_equal(TEXT.encode("A Red Circle"), TEXT.encode("a red circle"))
    one, two = TEXT.encode("red blue"), TEXT.encode("blue red")
    assert not np.allclose(one.mean(axis=0), 0)
    assert np.abs(one - two[::-1]).max() > 0.1


def test_different_words_are_nearly_orthogonal_and_of_unit_size() -> None:
    words = ["red", "blue", "green", "circle", "square", "left", "right", "up", "down", "turns"]
    vectors = np.stack([TEXT.encode(word)[0] for word in words])
    vectors -= np.repeat([0, 1], 32) * POSITION_SCALE * np.sqrt(2)  # the position term of the first word
    np.testing.assert_allclose(np.mean(vectors**2, axis=1), 1, rtol=1e-5)
    assert np.abs(np.corrcoef(vectors) - np.eye(len(words))).max() < 0.5


def test_equal_encoders_have_equal_fingerprints() -> None:
    assert HashingText(64, 24).fingerprint == TEXT.fingerprint
    assert len({HashingText(64, 24).fingerprint, HashingText(64, 16).fingerprint, HashingText(32, 24).fingerprint}) == 3


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="text width 63"):
        HashingText(63, 24)
