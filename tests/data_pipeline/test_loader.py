import itertools
import shutil
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import order
from data_pipeline.clips import clips_of
from data_pipeline.errors import UserError
from data_pipeline.loader import Dataset, open_dataset, prefetch
from data_pipeline.shards import Sample, write_shard

from .conftest import Encoded


def test_a_batch_holds_the_samples_at_its_positions(encoded: Encoded) -> None:
    samples = encoded.dataset.split("9x48x48", "train", seed=0)
    batch = samples.fetch([5, 0, 3])
    assert batch.latents.shape == (3, 3, 6, 6, 16)
    assert np.moveaxis(batch.latents, -1, 2).flags.c_contiguous
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


def test_a_batch_is_normalised_to_the_bit_as_the_manifest_says(encoded: Encoded) -> None:
    samples = encoded.dataset.split("9x48x48", "train", seed=0)
    batch = samples.fetch(range(8))
    for item in range(8):
        _, shard, row = samples._place(item)
        raw = samples._reader(shard).latent(row)
        np.testing.assert_array_equal(batch.latents[item], encoded.dataset.normalise(np.moveaxis(raw, 1, -1)))


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


@pytest.fixture(scope="module")
def large(encoded: Encoded, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A data set of 10^7 samples in 10^4 shards, all of which are one file under many names."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(1, 64)).astype(np.float32)
    latents = rng.normal(size=(1000, 2, 16, 4, 4)).astype(np.float32)
    entry = write_shard(
        folder / "5x32x32", "shard-000000", (Sample(f"{n:016x}-0000", latent, texts, {"caption": ""}) for n, latent in enumerate(latents))
    )
    entries = tuple(replace(entry, name=f"shard-{number:06d}") for number in range(10_000))
    for other in entries[1:]:
        for suffix in ("tar", "idx"):
            (folder / "5x32x32" / f"{other.name}.{suffix}").hardlink_to(folder / "5x32x32" / f"{entry.name}.{suffix}")
    manifest = replace(encoded.dataset.manifest, buckets={"5x32x32": {"train": entries, "held_out": ()}})
    return Dataset(folder, manifest, "large")


def test_ten_million_samples_are_sought_with_flat_memory_and_the_work_of_one_window(
    large: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    sorted_at_once: list[int] = []
    permutation = order._permutation

    def counted(size: int, *key: int | str) -> order.Indices:
        sorted_at_once.append(size)
        return permutation(size, *key)

    monkeypatch.setattr(order, "_permutation", counted)
    samples = large.split("5x32x32", "train", seed=0)
    assert len(samples) == 10**7
    jumps = np.random.default_rng(1).integers(0, len(samples), 150).tolist()
    tracemalloc.start()
    try:
        samples.fetch(jumps[:50])
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for position in jumps[50:]:
            samples.fetch([position])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < before + 10e6
    assert peak < 30e6
    assert sorted(set(sorted_at_once)) == [4000, 10_000]  # the samples of one window; once per epoch, the shards
    assert sorted_at_once.count(10_000) == 1


@pytest.mark.parametrize("threads", [1, 3])
def test_prefetching_with_any_number_of_threads_keeps_the_order(threads: int) -> None:
    results = prefetch(range(30), lambda number: (time.sleep(0.003 * (number % 3)), number)[1], depth=4, threads=threads)
    assert list(results) == list(range(30))


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
