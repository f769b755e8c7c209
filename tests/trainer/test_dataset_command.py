import json
import shutil
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from data_pipeline.loader import open_dataset
from data_pipeline.synthetic import write_synthetic
from trainer.commands.dataset import command


@pytest.fixture
def folder(tiny_dataset: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


def test_videos_are_added_removed_and_given_captions_each_as_a_generation(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_synthetic(tmp_path / "more", clips=3, seed=5, size=32, frames=10, fps=8)
    for number, path in enumerate(sorted((tmp_path / "more").glob("*.mp4"))):
        path.rename(path.with_name(f"new-{number}.mp4"))
    (tmp_path / "more" / "broken.mp4").write_bytes(b"words")
    before = open_dataset(folder).manifest
    assert command([f"folder={folder}", f"add={tmp_path / 'more'}"], {}) == 0
    grown = open_dataset(folder).manifest
    clips = [sum(made.clips("5x32x32", split) for split in ("train", "held_out")) for made in (before, grown)]
    assert (grown.generation, clips[1] - clips[0]) == (1, 6)
    shown = capsys.readouterr().out
    assert "broken.mp4: failed, Invalid data" in shown
    assert "generation 1  5x32x32: train" in shown
    assert command([f"folder={folder}", "remove.ids=new-0.mp4,new-1.mp4"], {}) == 0
    assert open_dataset(folder).manifest.generation == 2
    (tmp_path / "words.csv").write_text("file,caption\nnew-2.mp4,words of its own\n")
    assert command([f"folder={folder}", f"captions={tmp_path / 'words.csv'}"], {}) == 0
    newest = open_dataset(folder)
    assert newest.manifest.generation == 3
    assert [reader.meta(row)["caption"] for reader, row in newest.new_captions.values()] == ["words of its own"]
    assert open_dataset(folder, generation=0).manifest == before


@pytest.mark.parametrize("arguments", [[], ["folder={folder}"], ["folder={folder}", "remove.id=x"], ["remove.ids=x"]])
def test_what_it_cannot_mean_is_told_where_its_use_is_shown(folder: Path, arguments: list[str]) -> None:
    with pytest.raises(UserError, match=r"takes folder=<data set> and what to do with it: see dataset --help"):
        command([argument.format(folder=folder) for argument in arguments], {})


def test_a_folder_that_is_no_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no data set at {tmp_path}"):
        command([f"folder={tmp_path}", "remove.ids=x"], {})


def test_latents_made_elsewhere_become_a_data_set(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "made"
    shutil.copytree(folder / "5x32x32", place)
    tokenizer = open_dataset(folder).tokenizer
    (place / "latents.json").write_text(json.dumps({"tokenizer": tokenizer.fingerprint, "fps": 8}))
    arguments = [f"folder={tmp_path / 'set'}", f"import={place}", f"tokenizer={folder / 'tokenizer'}"]
    assert command(arguments, {}) == 0
    assert "5x32x32: train" in capsys.readouterr().out
    assert open_dataset(tmp_path / "set").tokenizer.fingerprint == tokenizer.fingerprint
    with pytest.raises(UserError, match="is a data set already"):
        command(arguments, {})
    with pytest.raises(UserError, match="needs tokenizer=<folder>"):
        command([f"folder={tmp_path / 'other'}", f"import={place}"], {})
