from dataclasses import replace
from pathlib import Path

import pytest

from cluster import dataset as datasets
from cluster.dataset import EncodeJob
from data_pipeline.errors import UserError
from data_pipeline.tokenizers import linear
from trainer import config as configs
from trainer.config import RunConfig

STAGE = "{name: s, frames: 5, height: 32, width: 32, tokens_per_step: 64, promotion: {max_steps: 1}}"


def recipe(root: Path, *changes: str) -> RunConfig:
    small = ["data.synthetic={clips: 8, frames: 6, size: 32}", f"curriculum.stages=[{STAGE}]", "data.latent_channels=4"]
    return configs.load([*small, f"data.root={root}", *changes])


def find(config: RunConfig) -> EncodeJob:
    return datasets.find(config, datasets.encode_spec(config))


def test_synthetic_videos_of_another_rate_have_a_folder_of_their_own(tmp_path: Path) -> None:
    jobs = [find(recipe(tmp_path, f"data.fps={fps}")) for fps in (8, 4, 8)]
    assert jobs[0].folder == jobs[2].folder
    assert jobs[0].videos != jobs[1].videos
    assert all(len(job.sources.sources) == 8 and not job.sources.without_caption.count for job in jobs)


@pytest.mark.parametrize("fps", ["0.4", "7.5"])
def test_synthetic_videos_of_a_fractional_rate_are_refused(tmp_path: Path, fps: str) -> None:
    with pytest.raises(UserError, match=rf"data\.fps={fps}"):
        find(recipe(tmp_path, f"data.fps={fps}"))
    assert not list(tmp_path.iterdir())


def test_captions_without_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.captions=words\.csv .* data\.videos"):
        find(recipe(tmp_path, "data.captions=words.csv"))


@pytest.mark.parametrize(("change", "named"), [("data.text_width=7", "text_width 7"), ("data.stride=[0, 8, 8]", "stride")])
def test_what_the_encoder_cannot_do_is_refused_before_anything_starts(tmp_path: Path, change: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        datasets.encode_spec(recipe(tmp_path, change))


def test_a_root_that_cannot_be_written_is_one_line_that_names_it(tmp_path: Path) -> None:
    job = find(recipe(tmp_path / "good"))
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(UserError, match=rf"{blocked}.*cannot be written.*data\.root"):
        find(recipe(blocked))
    with pytest.raises(UserError, match=rf"{blocked}.*cannot be written.*data\.root"):
        datasets.prepare(replace(job, folder=blocked / "set"), 1, lambda _: None)


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("ray_session")
def test_an_interrupted_fit_is_done_again_and_a_finished_data_set_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = find(recipe(tmp_path))

    def interrupted(path: Path, value: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(linear.storage, "write_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            datasets.prepare(job, 1, lambda _: None)
    assert list((job.folder / "tokenizer").iterdir())
    dataset, reused = datasets.prepare(job, 1, lambda _: None)
    assert not reused
    assert dataset.manifest.clips("5x32x32", "train")
    assert datasets.prepare(job, 1, lambda _: None) == (dataset, True)


def test_a_finished_data_set_is_trained_on_as_it_is_if_it_fits_the_recipe(tiny_dataset: Path, tmp_path: Path) -> None:
    def found(*more: str) -> EncodeJob:
        return find(recipe(tmp_path, f"data.videos={tiny_dataset}", "data.fps=8", "data.text_tokens=8", "data.text_width=16", *more))

    job = found()
    dataset, reused = datasets.prepare(job, 1, lambda _: None)
    assert (dataset.folder, reused) == (tiny_dataset, True)
    with pytest.raises(UserError, match="has channels 4, the recipe 8"):
        found("data.latent_channels=8")
    with pytest.raises(UserError, match="has no bucket 13x32x32"):
        found(f"curriculum.stages=[{STAGE.replace('frames: 5', 'frames: 13')}]")
