from pathlib import Path

import numpy as np
import pytest

from data_pipeline.buckets import Bucket
from data_pipeline.clips import clips_of
from data_pipeline.codecs import SHIPPED, choose_codecs
from data_pipeline.errors import UserError
from data_pipeline.spec import EncodeSpec
from data_pipeline.tokenizers import load_tokenizer, tokenizer_fingerprint
from data_pipeline.tokenizers.linear import LinearTokenizer
from data_pipeline.tokenizers.quality import verify

RECIPE = {"channels": 16, "stride": (4, 8, 8), "text_width": 64, "text_tokens": 24}


def test_the_default_is_fitted_and_hashed_and_known_by_the_data_alone() -> None:
    codecs = choose_codecs("linear", "hashing", **RECIPE)
    assert (codecs.tokenizer, codecs.text, codecs.fingerprints) == (None, None, ())
    assert (codecs.channels, codecs.stride, codecs.text_width) == (16, (4, 8, 8), 64)


def test_the_shipped_basis_starts_without_fitting(synthetic_videos: Path, tmp_path: Path) -> None:
    codecs = choose_codecs("shipped", "hashing", **RECIPE)
    assert isinstance(codecs.tokenizer, LinearTokenizer)
    codecs.tokenizer.save(tmp_path)
    assert codecs.fingerprints == (tokenizer_fingerprint(tmp_path),) == (load_tokenizer(SHIPPED).fingerprint,)
    bucket = Bucket(17, 64, 64)
    spec = EncodeSpec(fps=8, buckets=(bucket,))
    clips = [clip.frames for path in sorted(synthetic_videos.glob("*.mp4")) for clip in clips_of(path, spec).clips[bucket]]
    assert verify(codecs.tokenizer, clips).psnr_later > 24
    with pytest.raises(UserError, match="shipped has 16 channels and stride"):
        choose_codecs("shipped", "hashing", **RECIPE | {"channels": 4})


def test_the_shipped_basis_gives_back_real_clips(real_videos: Path) -> None:
    bucket = Bucket(17, 96, 96)
    spec = EncodeSpec(fps=8, buckets=(bucket,), max_clips=1)
    clips = [clip.frames for path in sorted(real_videos.glob("*.mp4")) for clip in clips_of(path, spec).clips[bucket]]
    assert len(clips) >= 18
    assert verify(load_tokenizer(SHIPPED), clips).psnr_later > 21


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"data\.tokenizer=/nowhere is no tokenizer"):
        choose_codecs("/nowhere", "hashing", **RECIPE)
    with pytest.raises(UserError, match=r"data\.text=/nowhere is no text encoder"):
        choose_codecs("linear", "/nowhere", **RECIPE)


def test_the_report_states_figures_and_draws_a_picture(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(SHIPPED)
    flat = np.full((9, 32, 48, 3), 90, np.uint8)
    quality = verify(tokenizer, [flat, flat[:, :16]], tmp_path / "verify.png")
    assert quality.clips == 2
    assert quality.psnr_first > 30
    assert (tmp_path / "verify.png").stat().st_size > 100
    with pytest.raises(ValueError, match="no clip"):
        verify(tokenizer, [])
