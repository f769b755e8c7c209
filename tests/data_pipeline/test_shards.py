import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from data_pipeline.shard_index import ShardError
from data_pipeline.shard_reader import ShardReader
from data_pipeline.shards import Sample, from_bfloat16, is_intact, to_bfloat16, write_shard


def samples(count: int = 5) -> list[Sample]:
    generator = np.random.default_rng(0)
    return [
        Sample(
            key=f"{number:016x}-0000",
            latent=generator.normal(size=(2, 16, 4, 4)).astype(np.float32),
            text=generator.normal(size=(1 + number, 8)).astype(np.float32),
            meta={"caption": f"clip {number}, ünïcode", "values": {"motion": number / 7}},
        )
        for number in range(count)
    ]


def check(reader: ShardReader) -> None:
    assert len(reader) == 5
    for row, sample in enumerate(samples()):
        assert reader.key(row) == sample.key
        np.testing.assert_array_equal(reader.latent(row), from_bfloat16(to_bfloat16(sample.latent)))
        np.testing.assert_array_equal(reader.text(row), from_bfloat16(to_bfloat16(sample.text)))
        assert reader.meta(row) == sample.meta


@given(st.lists(st.floats(-(2.0**126), 2.0**126, width=32)))
def test_bfloat16_rounds_as_torch_does(values: list[float]) -> None:
    ours = from_bfloat16(to_bfloat16(np.array(values, np.float32)))
    np.testing.assert_array_equal(ours, torch.tensor(values, dtype=torch.float32).bfloat16().float().numpy())


def test_what_is_written_is_read_by_row(tmp_path: Path) -> None:
    entry = write_shard(tmp_path, "shard-000000", samples())
    assert (entry.bucket, entry.name, entry.count) == (tmp_path.name, "shard-000000", 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard-000000.idx", "shard-000000.tar"]
    check(ShardReader(tmp_path / "shard-000000.tar"))


def test_webdatasets_own_library_reads_a_shard(tmp_path: Path) -> None:
    write_shard(tmp_path, "shard-000000", samples())
    found = list(webdataset.WebDataset(str(tmp_path / "shard-000000.tar"), shardshuffle=False).decode())
    assert [item["__key__"] for item in found] == [sample.key for sample in samples()]
    assert found[3]["json"] == samples()[3].meta
    latent = load(found[3]["latent.safetensors"])["latent"]
    assert latent.dtype == torch.bfloat16
    torch.testing.assert_close(latent, torch.from_numpy(samples()[3].latent).bfloat16(), rtol=0, atol=0)


def test_webdataset_gives_every_sample_its_text_also_where_all_have_the_same(tmp_path: Path) -> None:
    text = samples()[4].text
    alike = [replace(sample, text=text) for sample in samples()]
    write_shard(tmp_path, "alike", alike)
    with tarfile.open(tmp_path / "alike.tar") as tar:
        assert all(member.isfile() for member in tar)
    found = list(webdataset.WebDataset(str(tmp_path / "alike.tar"), shardshuffle=False).decode())
    assert [item["__key__"] for item in found] == [sample.key for sample in alike]
    for item in found:
        torch.testing.assert_close(load(item["text.safetensors"])["text"], torch.from_numpy(text).bfloat16(), rtol=0, atol=0)
    reader = ShardReader(tmp_path / "alike.tar")
    together = list(reader.read([4, 0, 2], ["latent", "text", "meta"]))
    assert [json.loads(bytes(parts["meta"])) for parts in together] == [alike[row].meta for row in (4, 0, 2)]


def test_a_tar_with_links_in_place_of_texts_is_no_shard(tmp_path: Path) -> None:
    write_shard(tmp_path, "shard-000000", samples()[:1])
    (tmp_path / "shard-000000.idx").unlink()
    with tarfile.open(tmp_path / "shard-000000.tar", "a") as tar:
        link = tarfile.TarInfo(f"{samples()[1].key}.text.safetensors")
        link.type, link.linkname = tarfile.LNKTYPE, f"{samples()[0].key}.text.safetensors"
        tar.addfile(link)
    with pytest.raises(ShardError, match=r"shard-000000\.tar is damaged .*: encode the data set again"):
        ShardReader(tmp_path / "shard-000000.tar")


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    entries = [write_shard(tmp_path / name / "bucket", "shard-000000", samples()) for name in ("one", "two")]
    assert entries[0] == entries[1]
    for suffix in ("tar", "idx"):
        one, two = (tmp_path / name / "bucket" / f"shard-000000.{suffix}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("index", [None, b"", b"{}", b'{"schema": 1, "bytes": 7, "members": []}'])
def test_a_lost_or_foreign_index_is_rebuilt_from_the_tar(tmp_path: Path, index: bytes | None) -> None:
    write_shard(tmp_path, "shard-000000", samples())
    path = tmp_path / "shard-000000.idx"
    path.unlink() if index is None else path.write_bytes(index)
    check(ShardReader(tmp_path / "shard-000000.tar"))


@pytest.mark.parametrize("part", ["latent", "text", "json"])
def test_a_bit_flipped_in_any_part_is_found_by_its_checksum_and_named(tmp_path: Path, part: str) -> None:
    write_shard(tmp_path, "shard-000000", samples())
    path = tmp_path / "shard-000000.tar"
    with tarfile.open(path) as tar:
        member = next(member for member in tar if member.name.startswith(samples()[2].key) and part in member.name)
    data = bytearray(path.read_bytes())
    data[member.offset_data + member.size - 3] ^= 1 << 5
    path.write_bytes(data)
    reader = ShardReader(path)
    read = {"latent": reader.latent, "text": reader.text, "json": reader.meta}[part]
    for row in (0, 1, 3, 4):
        read(row)
    with pytest.raises(ShardError, match=rf"shard-000000\.tar is damaged: the \w+ of sample {samples()[2].key} differs from its checksum"):
        read(2)


def test_a_bit_flipped_in_a_shard_whose_index_is_lost_is_found_by_the_manifest(tmp_path: Path) -> None:
    entry = write_shard(tmp_path, "shard-000000", samples())
    path = tmp_path / "shard-000000.tar"
    path.with_suffix(".idx").unlink()
    check(ShardReader(path, entry))
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"shard-000000\.tar is not the one that the manifest lists"):
        ShardReader(path, entry)


def test_a_damaged_or_missing_shard_is_named(tmp_path: Path) -> None:
    entry = write_shard(tmp_path, "shard-000000", samples())
    tar = tmp_path / "shard-000000.tar"
    assert is_intact(tmp_path.parent, entry)
    tar.write_bytes(tar.read_bytes()[: 512 * 5])
    assert not is_intact(tmp_path.parent, entry)
    with pytest.raises(ShardError, match=r"shard-000000\.tar is damaged"):
        ShardReader(tar)
    with pytest.raises(ShardError, match=r"shard-000001\.tar cannot be opened: No such file"):
        ShardReader(tmp_path / "shard-000001.tar")


def test_a_crash_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    def broken() -> Iterator[Sample]:
        yield samples()[0]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_shard(tmp_path, "shard-000000", broken())
    assert list(tmp_path.iterdir()) == []


def test_threads_share_a_reader(tmp_path: Path) -> None:
    write_shard(tmp_path, "shard-000000", samples())
    reader = ShardReader(tmp_path / "shard-000000.tar")
    errors: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(20):
                check(reader)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert errors == []
