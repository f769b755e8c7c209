from pathlib import Path

import numpy as np
import pytest

from data_pipeline.buckets import Bucket
from data_pipeline.clips import clips_of
from data_pipeline.errors import UserError
from data_pipeline.spec import EncodeSpec
from data_pipeline.tokenizers import load_tokenizer
from data_pipeline.tokenizers.linear import LinearTokenizer
from data_pipeline.tokenizers.quality import psnr

from ..conftest import moving_frames


@pytest.fixture(scope="module")
def clips(synthetic_videos: Path) -> list[np.ndarray]:
    bucket = Bucket(17, 64, 64)
    spec = EncodeSpec(fps=8, buckets=(bucket,))
    paths = sorted(synthetic_videos.glob("*.mp4"))
    return [clip.frames for path in paths for clip in clips_of(path, spec).clips[bucket]]


@pytest.fixture(scope="module")
def tokenizer(clips: list[np.ndarray]) -> LinearTokenizer:
    return LinearTokenizer.fit(clips[:8])


def test_unseen_clips_come_back_above_24_db(tokenizer: LinearTokenizer, clips: list[np.ndarray]) -> None:
    figures = [psnr(clip, tokenizer.decode(tokenizer.encode(clip))) for clip in clips[8:]]
    assert np.mean(figures) > 24


def test_latents_have_the_shape_that_buckets_promise(tokenizer: LinearTokenizer) -> None:
    latents = tokenizer.encode(moving_frames(9, 32, 48))
    assert latents.shape == (3, 16, 4, 6)
    assert latents.dtype == np.float32
    assert tokenizer.decode(latents).shape == (9, 32, 48, 3)
    assert tokenizer.encode(moving_frames(1, 32, 48)).shape == (1, 16, 4, 6)


def test_later_frames_never_change_earlier_latents(tokenizer: LinearTokenizer, clips: list[np.ndarray]) -> None:
    changed = clips[0].copy()
    changed[5:] = 255 - changed[5:]
    before, after = tokenizer.encode(clips[0]), tokenizer.encode(changed)
    np.testing.assert_array_equal(before[:2], after[:2])
    assert not np.array_equal(before[2], after[2])


def test_a_still_scene_has_nearly_the_same_latents_in_every_frame(tokenizer: LinearTokenizer, clips: list[np.ndarray]) -> None:
    latents = np.concatenate([tokenizer.encode(np.repeat(clip[:1], 17, axis=0)) for clip in clips[8:]], axis=1)
    difference = np.square(latents[1:] - latents[:1]).mean()
    assert difference < 0.03 * latents.var()


def test_components_are_orthonormal_and_the_decoder_is_a_projection(tokenizer: LinearTokenizer, clips: list[np.ndarray]) -> None:
    for basis in (tokenizer.first, tokenizer.group):
        np.testing.assert_allclose(basis.T @ basis, np.eye(16), atol=1e-5)
    latents = tokenizer.encode(clips[0] // 2 + 64)  # in the middle of the range, so that nothing is clipped
    again = tokenizer.encode(tokenizer.decode(latents))
    assert np.abs(again - latents).max() < 0.1


def test_fitting_twice_gives_the_same_tokenizer(tokenizer: LinearTokenizer, clips: list[np.ndarray]) -> None:
    assert LinearTokenizer.fit(iter(clips[:8])).fingerprint == tokenizer.fingerprint
    assert LinearTokenizer.fit(clips[:7]).fingerprint != tokenizer.fingerprint


def test_it_loads_bit_exactly(tokenizer: LinearTokenizer, clips: list[np.ndarray], tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    np.testing.assert_array_equal(loaded.encode(clips[0]), tokenizer.encode(clips[0]))


def test_other_strides_and_channel_counts_fit(clips: list[np.ndarray]) -> None:
    tokenizer = LinearTokenizer.fit(clips[:2], channels=8, stride=(2, 16, 16))
    assert tokenizer.encode(clips[0]).shape == (9, 8, 4, 4)


def test_single_frames_alone_make_a_tokenizer_of_images(clips: list[np.ndarray]) -> None:
    tokenizer = LinearTokenizer.fit(clip[:1] for clip in clips)
    assert psnr(clips[0][:1], tokenizer.decode(tokenizer.encode(clips[0][:1]))) > 24


def test_what_cannot_be_fitted_is_refused(clips: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="no clip"):
        LinearTokenizer.fit([])
    with pytest.raises(ValueError, match="channels 20 exceed the 12"):
        LinearTokenizer.fit(clips, channels=20, stride=(4, 2, 2))


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, "not a tok"), ("{}", "not a tok"), ('{"kind": "x"}', "'x'"), ('{"kind": "linear", "version": 0}', "version 0")],
)
def test_a_folder_without_a_known_tokenizer_is_named(tmp_path: Path, content: str | None, named: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=rf"tokenizer\.json.*{named}"):
        load_tokenizer(tmp_path)
