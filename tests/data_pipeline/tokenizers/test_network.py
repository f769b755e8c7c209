import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from data_pipeline.errors import UserError
from data_pipeline.tokenizers import load_tokenizer, open_tokenizer
from data_pipeline.tokenizers.description import describe
from data_pipeline.tokenizers.network import passes

from ..conftest import moving_frames
from .conftest import save_torchscript

STRIDES = {"cosmos-8x8x8": (8, 8, 8), "cosmos-8x16x16": (8, 16, 16), "wan": (4, 8, 8), "ltx": (4, 8, 8), "torchscript": (4, 8, 8)}
CHANNELS = {"torchscript": 6}
NAMES = sorted(STRIDES)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", NAMES)
def test_a_local_folder_is_a_tokenizer_with_the_stride_and_channels_it_says(weights: dict[str, Path], name: str) -> None:
    described = describe(weights[name], 6, (4, 8, 8))
    assert (described.stride, described.channels) == (STRIDES[name], CHANNELS.get(name, 4))
    tokenizer = open_tokenizer(described)
    step, rows, columns = described.stride
    frames = moving_frames(1 + 2 * step, 2 * rows, 3 * columns)
    latents = tokenizer.encode(frames)
    assert latents.shape == (3, described.channels, 2, 3)
    assert latents.dtype == np.float32
    decoded = tokenizer.decode(latents)
    assert decoded.shape == frames.shape
    assert decoded.dtype == np.uint8
    assert tokenizer.encode(frames[:1]).shape == (1, described.channels, 2, 3)


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_finds_its_tokenizer_again_bit_by_bit(weights: dict[str, Path], name: str, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(describe(weights[name], 6, (4, 8, 8)))
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    frames = moving_frames(1 + tokenizer.stride[0], 32, 32)
    np.testing.assert_array_equal(again.encode(frames), tokenizer.encode(frames))


def test_the_whole_pipelines_folder_will_do_too(weights: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(weights["wan"], tmp_path / "pipeline" / "vae")
    assert describe(tmp_path / "pipeline", 16, (4, 8, 8)).fingerprint == describe(weights["wan"], 16, (4, 8, 8)).fingerprint


def test_the_fingerprint_follows_weights_precision_and_passes_but_not_the_place(weights: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(weights["ltx"], tmp_path / "moved")
    plain = describe(weights["ltx"], 4, (4, 8, 8))
    assert describe(tmp_path / "moved", 4, (4, 8, 8)).fingerprint == plain.fingerprint
    others = [describe(weights["ltx"], 4, (4, 8, 8), "bfloat16"), describe(weights["ltx"], 4, (4, 8, 8), pass_frames=9)]
    (file,) = (tmp_path / "moved").glob("*.safetensors")
    arrays = load_file(file)
    save_file({name: array + (name == min(arrays)) for name, array in arrays.items()}, file)
    others.append(describe(tmp_path / "moved", 4, (4, 8, 8)))
    assert len({plain.fingerprint, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize("name", ["torchscript", "wan", "ltx"])
def test_passes_give_the_latents_of_a_single_pass(weights: dict[str, Path], name: str) -> None:
    frames = moving_frames(1 + 30 * 4, 16, 24)
    whole = open_tokenizer(describe(weights[name], 6, (4, 8, 8))).encode(frames)
    parts = open_tokenizer(describe(weights[name], 6, (4, 8, 8), pass_frames=97)).encode(frames)
    np.testing.assert_allclose(parts, whole, atol=1e-6 * np.abs(whole).max())


def test_a_network_that_looks_back_without_a_limit_refuses_passes(weights: dict[str, Path]) -> None:
    """Cosmos attends to all earlier frames: no overlap would be exact."""
    with pytest.raises(UserError, match=r"cosmos-8x8x8 looks back without a limit.*tokenizer_frames"):
        open_tokenizer(describe(weights["cosmos-8x8x8"], 4, (8, 8, 8), pass_frames=17))


@given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 40), st.integers(1, 5))
def test_passes_cover_every_latent_once_within_the_limit(count: int, step: int, more: int, overlap: int) -> None:
    limit = 1 + overlap * step + more
    fitting = 1 + (limit - 1) // step
    if fitting <= overlap:
        return
    made: list[int] = []
    for first, frames, drop in passes(max(count, fitting), step, limit, overlap):
        assert frames.stop - frames.start <= limit
        latents = 1 + (frames.stop - frames.start - 1) // step
        assert first == len(made)
        assert frames.start == (first - drop) * step
        made += range(first, first + latents - drop)
    assert made == list(range(max(count, fitting)))


def test_a_pass_too_short_for_its_overlap_is_refused(weights: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="tokenizer_frames=5: this tokenizer needs at least"):
        open_tokenizer(describe(weights["ltx"], 4, (4, 8, 8), pass_frames=5)).encode(moving_frames(41, 32, 32))


def test_a_network_that_sees_the_future_is_refused(tmp_path: Path) -> None:
    folder = save_torchscript(tmp_path / "future", causal=False)
    with pytest.raises(UserError, match="future is not a causal tokenizer"):
        open_tokenizer(describe(folder, 6, (4, 8, 8)))


def test_a_torchscript_folder_of_another_stride_than_the_recipes_is_refused(weights: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"torchscript: 17 frames give latents .*check data\.stride"):
        open_tokenizer(describe(weights["torchscript"], 6, (8, 8, 8)))
    with pytest.raises(UserError, match=r"give latents \(3, 6, 2, 2\), not \(3, 16, 2, 2\)"):
        open_tokenizer(describe(weights["torchscript"], 16, (4, 8, 8)))


def test_half_precision_is_close_to_full(weights: dict[str, Path]) -> None:
    frames = moving_frames(9, 32, 32)
    full, half = (open_tokenizer(describe(weights["ltx"], 4, (4, 8, 8), dtype)).encode(frames) for dtype in ("float32", "bfloat16"))
    assert 0 < np.abs(full - half).max() < 0.05 * np.abs(full).max()


def test_folders_that_are_no_tokenizer_are_named_with_what_is_missing(weights: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.tokenizer=.* is no tokenizer: it needs a diffusers config"):
        describe(tmp_path, 16, (4, 8, 8))
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKLCogVideoX"}')
    with pytest.raises(UserError, match="AutoencoderKLCogVideoX is not among the causal tokenizers AutoencoderKLCosmos"):
        describe(tmp_path, 16, (4, 8, 8))
    shutil.copy(weights["wan"] / "config.json", tmp_path)
    with pytest.raises(UserError, match="holds no weights"):
        describe(tmp_path, 16, (4, 8, 8))
    with pytest.raises(UserError, match="tokenizer_dtype=int8: choose one of float32"):
        describe(weights["wan"], 16, (4, 8, 8), "int8")
    with pytest.raises(UserError, match="tokenizer_frames=4: a pass needs at least 5"):
        describe(weights["wan"], 16, (4, 8, 8), pass_frames=4)
    for name in ("encoder.jit", "decoder.jit"):
        (tmp_path / name).write_bytes(b"words")
    with pytest.raises(UserError, match="not TorchScript files"):
        open_tokenizer(describe(tmp_path, 16, (4, 8, 8)))


def test_weights_that_moved_or_changed_after_encoding_are_named(weights: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(weights["torchscript"], tmp_path / "weights")
    described = describe(tmp_path / "weights", 6, (4, 8, 8))
    described.save(tmp_path / "tokenizer")
    (tmp_path / "weights" / "extra.json").write_text("{}")
    with pytest.raises(UserError, match="holds other weights than the data set was encoded with"):
        load_tokenizer(tmp_path / "tokenizer")
    shutil.rmtree(tmp_path / "weights")
    with pytest.raises(UserError, match=r"no longer in .*weights: put them back"):
        load_tokenizer(tmp_path / "tokenizer")
