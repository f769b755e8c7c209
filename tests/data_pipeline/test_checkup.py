import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline import checkup, storage
from data_pipeline import manifest as manifests
from data_pipeline.living import recaption
from data_pipeline.loader import Dataset, open_dataset
from data_pipeline.storage import S3Path

from .conftest import Encoded, bytes_by_name


@pytest.fixture
def copy(encoded: Encoded, tmp_path: Path) -> Dataset:
    shutil.copytree(encoded.dataset.folder, tmp_path / "set")
    return open_dataset(tmp_path / "set")


def findings(dataset: Dataset) -> list[str]:
    return [finding.what for finding in checkup.examine(dataset)]


def test_a_sound_data_set_has_no_findings_on_a_disk_or_in_s3(copy: Dataset, bucket: S3Path) -> None:
    assert findings(copy) == []
    storage.copy_tree(copy.folder, bucket / "set", last="manifest.json")
    assert findings(open_dataset(bucket / "set")) == []


def test_every_flipped_bit_is_found_and_its_shard_named(copy: Dataset) -> None:
    path = Path(str(copy.folder)) / "5x32x32" / "shard-000001.tar"
    whole = path.read_bytes()
    for place, where in ((100, ""), (700, ", first in the latent of sample"), (len(whole) - 600, "")):  # a header, a sample, the padding
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        (found,) = findings(copy)
        assert f"shard {path} differs from its checksum{where}" in found


def test_lost_and_torn_indices_are_mended_to_the_same_bytes(copy: Dataset, encoded: Encoded) -> None:
    folder = Path(str(copy.folder))
    (folder / "5x32x32" / "shard-000000.idx").unlink()
    (folder / "9x48x48" / "shard-000001.idx").write_bytes(b"half of it")
    found = list(checkup.examine(copy))
    assert [finding.mended for finding in found] == [True, True]
    assert bytes_by_name(folder) == bytes_by_name(encoded.dataset.folder)
    assert findings(copy) == []


def test_what_is_missing_too_much_or_of_another_data_set_is_named(copy: Dataset) -> None:
    folder = Path(str(copy.folder))
    (folder / "5x32x32" / "shard-000000.tar").rename(folder / "5x32x32" / "shard-000009.tar")
    next((folder / "sources").iterdir()).unlink()
    (folder / "tokenizer" / "tokenizer.json").unlink()
    text = "\n".join(findings(copy))
    for part in ("shard-000000.tar is missing", "shard-000009.tar is not in the manifest", "11 records", "tokenizer.json"):
        assert part in text


def test_captions_of_later_generations_are_examined_like_the_samples(copy: Dataset, encoded: Encoded) -> None:
    folder, source = Path(str(copy.folder)), encoded.sources[0].id
    made = recaption(copy.manifest, folder, {source: "new words"}, encoded.text)
    manifests.write(made, folder)
    assert findings(open_dataset(folder)) == []
    path = folder / "text" / "captions-000001.tar"
    path.with_suffix(".idx").unlink()
    assert [finding.mended for finding in checkup.examine(open_dataset(folder))] == [True]
    whole = path.read_bytes()
    path.write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    (found,) = findings(open_dataset(folder))
    assert f"shard {path} differs from its checksum" in found
    path.write_bytes(whole)
    (folder / "sources" / f"{source}.json").unlink()
    shutil.copy(path, path.with_name("captions-000009.tar"))
    text = "\n".join(findings(open_dataset(folder)))
    assert f"has a caption for source {source}, which the data set does not have" in text
    assert "captions-000009.tar is not in the manifest" in text


def test_a_manifest_that_counts_wrong_is_found(copy: Dataset) -> None:
    buckets = {name: dict(splits) for name, splits in copy.manifest.buckets.items()}
    first, *rest = buckets["5x32x32"]["train"]
    buckets["5x32x32"]["train"] = (replace(first, count=first.count + 1), *rest)
    wrong = replace(copy, manifest=replace(copy.manifest, buckets=buckets))
    assert any("the manifest says" in what for what in findings(wrong))


def test_a_sample_that_is_there_twice_is_found(copy: Dataset) -> None:
    buckets = {name: dict(splits) for name, splits in copy.manifest.buckets.items()}
    buckets["5x32x32"]["train"] += buckets["5x32x32"]["train"][:1]
    assert any("are there twice" in what for what in findings(replace(copy, manifest=replace(copy.manifest, buckets=buckets))))
