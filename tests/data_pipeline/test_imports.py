"""Latents that another program made: read from its tars, checked against what it says of them, and read like any others."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import checkup
from data_pipeline import manifest as manifests
from data_pipeline.errors import UserError
from data_pipeline.imports import import_latents
from data_pipeline.loader import TOKENIZER_FOLDER, Dataset, open_dataset
from data_pipeline.text.hashing import HashingText

from .conftest import Encoded, bytes_by_name

BUCKET = "5x32x32"


def export(encoded: Encoded, folder: Path, **changed: object) -> Path:
    """The bucket's latents as another program stores them: one tar of npy files beside their captions."""
    folder.mkdir()
    samples = encoded.dataset.split(BUCKET, "train", 0)
    with tarfile.open(folder / "part.tar", "w") as tar:
        for position in range(len(samples)):
            _, entry, row = samples._place(position)
            reader = samples._reader(entry)
            array = io.BytesIO()
            np.save(array, reader.latent(row))
            for suffix, data in ((".npy", array.getvalue()), (".txt", reader.meta(row)["caption"].encode())):
                member = tarfile.TarInfo(reader.key(row) + suffix)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    statement: dict[str, object] = {"tokenizer": encoded.tokenizer.fingerprint, "fps": 8} | changed
    (folder / "latents.json").write_text(json.dumps(statement))
    return folder


def imported(encoded: Encoded, place: Path, folder: Path) -> Dataset:
    made = import_latents(place, folder, encoded.tokenizer, HashingText(64, 24))
    encoded.tokenizer.save(folder / TOKENIZER_FOLDER)
    manifests.write(made, folder)
    return open_dataset(folder)


def test_imported_latents_are_a_sound_data_set_with_their_captions(encoded: Encoded, tmp_path: Path) -> None:
    dataset = imported(encoded, export(encoded, tmp_path / "made"), tmp_path / "set")
    before = encoded.dataset.split(BUCKET, "train", 0)
    assert sum(dataset.manifest.clips(BUCKET, split) for split in ("train", "held_out")) == len(before)
    assert [finding.what for finding in checkup.examine(dataset)] == []

    def contents(data: Dataset, split: str) -> set[tuple[str, bytes]]:
        samples = data.split(BUCKET, split, 0)
        places = [samples._place(position) for position in range(len(samples))]
        return {(samples._reader(shard).meta(row)["caption"], samples._reader(shard).latent(row).tobytes()) for _, shard, row in places}

    assert contents(dataset, "train") | contents(dataset, "held_out") == contents(encoded.dataset, "train")
    assert dataset.decode(dataset.split(BUCKET, "train", 0).fetch([0]).latents[0]).shape == (5, 32, 32, 3)
    once = bytes_by_name(tmp_path / "set")
    imported(encoded, tmp_path / "made", tmp_path / "set")
    assert bytes_by_name(tmp_path / "set") == once


def test_the_shards_of_another_data_set_can_be_imported(encoded: Encoded, tmp_path: Path) -> None:
    place = tmp_path / "made"
    place.mkdir()
    for tar in (Path(str(encoded.dataset.folder)) / BUCKET).glob("*.tar"):
        (place / tar.name).write_bytes(tar.read_bytes())
    (place / "latents.json").write_text(json.dumps({"tokenizer": encoded.tokenizer.fingerprint, "fps": 8}))
    dataset = imported(encoded, place, tmp_path / "set")
    clips = [sum(data.manifest.clips(BUCKET, split) for split in ("train", "held_out")) for data in (dataset, encoded.dataset)]
    assert clips[0] == clips[1]


def corrected(place: Path) -> None:
    """Every latent of the export twice as large: names, captions and sizes are what they were."""
    with tarfile.open(place / "part.tar") as tar:
        members = [(member, tar.extractfile(member)) for member in tar]
        contents = [(member, file.read()) for member, file in members if file]
    with tarfile.open(place / "part.tar", "w") as tar:
        for member, data in contents:
            if member.name.endswith(".npy"):
                array = io.BytesIO()
                np.save(array, 2 * np.load(io.BytesIO(data)))
                data = array.getvalue()
            tar.addfile(member, io.BytesIO(data))


def test_a_corrected_latent_of_the_same_name_and_size_takes_the_place_of_the_old_one(encoded: Encoded, tmp_path: Path) -> None:
    place, folder = export(encoded, tmp_path / "made"), tmp_path / "set"
    before = imported(encoded, place, folder).split(BUCKET, "train", 0)
    keys = [before.sample_key(position) for position in range(len(before))]
    latents = [before._reader(entry).latent(row) for _, entry, row in map(before._place, range(len(before)))]
    size = (place / "part.tar").stat().st_size
    corrected(place)
    assert (place / "part.tar").stat().st_size == size
    (folder / "manifest.json").unlink()  # as if the first import had been cut off at its end
    shutil.rmtree(folder / "generations")
    after = imported(encoded, place, folder).split(BUCKET, "train", 0)
    assert [after.sample_key(position) for position in range(len(after))] == keys
    for position, old in enumerate(latents):
        _, entry, row = after._place(position)
        np.testing.assert_array_equal(after._reader(entry).latent(row), 2 * old)


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ({"tokenizer": "0123"}, r"tokenizer 0123 made these latents, not [0-9a-f]{32}: name that one's folder"),
        ({"fps": "fast"}, "must say how the latents were made"),
        ({"mean": [0.0] * 16, "std": [1.0] * 16}, "channel 0 should have mean 0 and deviation 1, but has .*: store raw latents"),
        ({"mean": [0.0], "std": [1.0]}, "mean and std have 1 and 1 numbers, latents 16 channels"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(encoded: Encoded, tmp_path: Path, statement: dict[str, object], named: str) -> None:
    place = export(encoded, tmp_path / "made", **statement)
    with pytest.raises(UserError, match=rf"latents\.json.*{named}") as raised:
        import_latents(place, tmp_path / "set", encoded.tokenizer, HashingText(64, 24))
    assert "\n" not in str(raised.value)


def test_a_sample_that_is_no_latent_is_named(encoded: Encoded, tmp_path: Path) -> None:
    place = export(encoded, tmp_path / "made")
    with tarfile.open(place / "more.tar", "w") as tar:
        member = tarfile.TarInfo("bad.npy")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"words"))
    with pytest.raises(UserError, match=r"more\.tar/bad\.npy holds no latent"):
        import_latents(place, tmp_path / "set", encoded.tokenizer, HashingText(64, 24))
