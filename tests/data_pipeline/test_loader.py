import itertools
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.clips import clips_of
from data_pipeline.errors import UserError
from data_pipeline.loader import open_dataset, prefetch

from .conftest import Encoded


def test_a_batch_holds_the_samples_at_its_positions(encoded: Encoded) -> None:
    samples = encoded.dataset.split("9x48x48", "train", seed=0)
    batch = samples.fetch([5, 0, 3])
    assert batch.latents.shape == (3, 3, 6, 6, 16)
    assert batch.latents.dtype == batch.text.dtype == np.float32
    assert batch.text.shape == (3, 24, 64)
    assert batch.text_length.dtype == np.int64
    assert batch.keys == tuple(samples.sample_key(position) for position in (5, 0, 3))
    for item, key in enumerate(batch.keys):
        source = next(source for source in encoded.sources if key.startswith(source.id))
        vectors = encoded.text.encode(source.caption)
        assert batch.text_length[item] == len(vectors)
        np.testing.assert_allclose(batch.text[item, : len(vectors)], vectors, rtol=2**-8)
        assert not batch.text[item, len(vectors) :].any()


def test_a_sample_decodes_to_the_clip_it_was_made_from(encoded: Encoded) -> None:
    samples = encoded.dataset.split("9x48x48", "held_out", seed=0)
    (key,), latents = samples.fetch([0]).keys, samples.fetch([0]).latents[0]
    source = next(source for source in encoded.sources if key.startswith(source.id))
    clip = clips_of(source.path, encoded.spec).clips[samples.bucket][int(key.split("-")[1])]
    frames = encoded.dataset.decode(latents)
    assert frames.shape == clip.frames.shape
    assert np.mean((frames.astype(float) - clip.frames) ** 2) < 255**2 / 10**2.2  # 22 dB


def test_normalised_train_latents_have_zero_mean_and_unit_scale(encoded: Encoded) -> None:
    batches = [encoded.dataset.split(bucket, "train", seed=0) for bucket in encoded.dataset.manifest.buckets]
    values = np.concatenate([b.fetch(range(len(b))).latents[:, 1:].reshape(-1, 16) for b in batches])
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-3)
    assert np.sqrt(values.var(axis=0).mean()) == pytest.approx(1, abs=1e-3)


def test_epochs_hold_every_sample_once_and_batches_wrap_over_their_end(encoded: Encoded) -> None:
    samples = encoded.dataset.split("5x32x32", "train", seed=4)
    keys = [samples.sample_key(position) for position in range(2 * len(samples))]
    first, second = set(keys[: len(samples)]), set(keys[len(samples) :])
    assert len(first) == len(samples)
    assert first == second
    assert keys[: len(samples)] != keys[len(samples) :]
    wrapping = range(len(samples) - 2, len(samples) + 2)
    assert samples.fetch(wrapping).keys == tuple(keys[position] for position in wrapping)


def test_every_world_size_sees_the_same_global_batch(encoded: Encoded) -> None:
    samples = encoded.dataset.split("5x32x32", "train", seed=0)
    whole = samples.fetch(range(6, 12))
    parts = [samples.fetch(range(6 + rank, 12, 3)) for rank in range(3)]
    for rank, part in enumerate(parts):
        np.testing.assert_array_equal(part.latents, whole.latents[rank::3])


def test_a_lost_index_changes_nothing_and_a_lost_shard_is_named(encoded: Encoded, tmp_path: Path) -> None:
    shutil.copytree(encoded.dataset.folder, tmp_path, dirs_exist_ok=True)
    for index in (tmp_path / "5x32x32").glob("*.idx"):
        index.unlink()
    copy, original = (d.split("5x32x32", "train", 0) for d in (open_dataset(tmp_path), encoded.dataset))
    np.testing.assert_array_equal(copy.fetch(range(8)).latents, original.fetch(range(8)).latents)
    for shard in (tmp_path / "5x32x32").glob("*.tar"):
        shard.unlink()
    with pytest.raises(UserError, match=r"5x32x32/shard-\d{6}\.tar cannot be opened"):
        open_dataset(tmp_path).split("5x32x32", "train", 0).fetch([0])


def test_a_bucket_that_is_not_there_and_a_folder_that_is_no_data_set_are_named(encoded: Encoded, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no bucket 7x7x7; it has 5x32x32, 9x48x48"):
        encoded.dataset.split("7x7x7", "train", seed=0)
    with pytest.raises(UserError, match=f"no data set at {tmp_path}"):
        open_dataset(tmp_path)


def test_another_data_sets_tokenizer_is_refused(encoded: Encoded, tmp_path: Path) -> None:
    shutil.copytree(encoded.dataset.folder, tmp_path, dirs_exist_ok=True)
    other = encoded.tokenizer.fit([np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)])
    other.save(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="another data set's tokenizer"):
        _ = open_dataset(tmp_path).tokenizer


def test_prefetching_keeps_the_order_and_stays_a_few_requests_ahead() -> None:
    asked: list[int] = []

    def requests() -> Iterator[int]:
        for number in itertools.count():
            asked.append(number)
            yield number

    results = prefetch(requests(), lambda number: number**2, depth=2)
    assert list(itertools.islice(results, 10)) == [number**2 for number in range(10)]
    assert len(asked) == 12
    assert list(prefetch(range(3), str, depth=5)) == ["0", "1", "2"]


def test_an_error_while_prefetching_is_raised_in_its_place() -> None:
    results = prefetch([2, 1, 0, 5], lambda number: 10 // number)
    assert [next(results), next(results)] == [5, 10]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_closing_the_iterator_ends_its_thread() -> None:
    results = prefetch(itertools.count(), lambda number: number)
    next(results)
    assert any(thread.name.startswith("prefetch") for thread in threading.enumerate())
    results.close()
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())
