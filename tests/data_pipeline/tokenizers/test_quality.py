from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.tokenizers.linear import LinearTokenizer
from data_pipeline.tokenizers.quality import psnr, ssim, verify

from ..conftest import moving_frames


def test_equal_frames_are_perfect_and_noise_is_measured() -> None:
    frames = moving_frames(3, 32, 40)
    assert (psnr(frames, frames), ssim(frames, frames)) == (100, pytest.approx(1))
    assert psnr(frames // 2 * 2, frames // 2 * 2 + 1) == pytest.approx(20 * np.log10(255))
    noisy = np.clip(frames + np.random.default_rng(0).normal(0, 25, frames.shape), 0, 255).astype(np.uint8)
    assert 18 < psnr(frames, noisy) < 22
    assert 0.2 < ssim(frames, noisy) < 0.9
    assert ssim(frames, 255 - frames) < 0


def test_brightness_matters_less_than_structure() -> None:
    frames = moving_frames(2, 64, 64) // 2 + 40
    shuffled = np.random.default_rng(0).permuted(frames, axis=1)
    assert ssim(frames, frames + 20) > 0.9 > 0.5 > ssim(frames, shuffled)


def test_later_frames_of_images_are_left_out(tmp_path: Path) -> None:
    clips = [moving_frames(5, 32, 32), moving_frames(1, 32, 64)]
    tokenizer = LinearTokenizer.fit(clips, channels=12)
    quality = verify(tokenizer, clips, tmp_path / "sheet.png")
    assert quality.clips == 2
    assert quality.psnr_first > 20
    assert np.isfinite([quality.psnr_later, quality.ssim_later, quality.worst_psnr]).all()
    picture = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert picture.shape == (2 * (64 + 4), 96, 3)
    np.testing.assert_array_equal(picture[:32, :32], clips[0][0])
