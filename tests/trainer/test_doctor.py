from pathlib import Path

import pytest
from PIL import Image

from data_pipeline import storage
from data_pipeline.storage import S3Path
from trainer.main import main


def test_a_sound_data_set_is_described_and_shown(tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tiny_dataset), f"sheet={tmp_path / 'clips.png'}"]) == 0
    told = capsys.readouterr().out
    assert "48: 48 used, 0 rejected, 0 unreadable" in told
    assert "bucket    5x32x32: " in told
    assert "sound: every byte has its checksum" in told
    sheet = Image.open(tmp_path / "clips.png")
    assert sheet.size == (8 * 96, 3 * 6 * 112), "three buckets"
    assert len(sheet.getcolors(1 << 24) or []) > 1000


def test_a_damaged_data_set_ends_with_1_and_names_the_shard(
    tiny_dataset: Path, bucket: S3Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    storage.copy_tree(tiny_dataset, bucket / "set", last="manifest.json")
    path = bucket / "set" / "5x32x32" / "shard-000001.tar"
    data = bytearray(storage.read_bytes(path))
    data[700] ^= 16
    storage.write_bytes(path, bytes(data))
    assert main(["doctor", str(bucket / "set")]) == 1
    assert f"wrong   shard {path} differs from its checksum, first in the " in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["one", "two"], ["one", "colour=red"]])
def test_other_arguments_are_refused_with_an_example(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    assert "doctor takes one data set, e.g." in capsys.readouterr().err


def test_a_folder_that_is_no_data_set_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path)]) == 2
    assert f"no data set at {tmp_path}" in capsys.readouterr().err
