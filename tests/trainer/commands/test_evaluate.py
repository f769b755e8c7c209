"""`evaluate` from a user's side: the same numbers every time, differences that are paired, a page that shows what the numbers say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainer.inspection.evaluation.clips import MEASURES
from trainer.main import main

pytestmark = pytest.mark.timeout(200)
FEW = ["--clips", "3", "--seeds", "0", "1"]


def evaluated(folder: Path, *arguments: object) -> dict[str, Any]:
    assert main(["evaluate", *map(str, arguments), "-o", str(folder)]) == 0
    result: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return result


@pytest.fixture(scope="module")
def model(exported: Path, tiny_dataset: Path) -> list[object]:
    """The arguments that name the model and its data."""
    return [exported, "--data", tiny_dataset]


@pytest.fixture(scope="module")
def result(model: list[object], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("evaluation")
    return folder, evaluated(folder, *model, *FEW)


class Pooling(nn.Module):
    """Stands for I3D: the same call, features of 4 numbers."""

    def forward(self, videos: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True) -> Tensor:
        return torch.cat([videos.mean([2, 3, 4]), videos.std().reshape(1, 1)], dim=1)


def refused(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["evaluate", *map(str, arguments)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return printed


def test_every_measure_has_a_mean_and_an_interval_of_the_seeds(result: tuple[Path, dict[str, Any]]) -> None:
    model = result[1]["models"]["A"]
    assert set(model["measures"]) == set(MEASURES)
    psnr = model["measures"]["psnr"]
    assert psnr["low"] < psnr["mean"] < psnr["high"]
    assert psnr["mean"] == pytest.approx(np.mean(psnr["by_seed"]))
    assert 3 < psnr["mean"] < 60
    assert len(model["curves"]["psnr"]) == 8  # of 9 frames one was given
    assert np.mean(model["curves"]["psnr"]) == pytest.approx(psnr["mean"])
    assert model["moving_error_of_mean_sample"] <= model["measures"]["moving_error"]["mean"] * 1.01
    assert model["fvd"] is None
    assert result[1]["copying"]["dynamic_degree"] == 0.0
    assert result[1]["copying"]["flicker"] == 0.0
    assert result[1]["truth"]["psnr"] == 99.0
    assert result[1]["truth"]["moving_error"] == 0.0


def test_losses_are_told_by_bucket_frame_and_noise_level(result: tuple[Path, dict[str, Any]]) -> None:
    losses = result[1]["models"]["A"]["losses"]
    assert list(losses) == ["5x32x32", "9x32x32"]
    for frames, loss in zip((2, 3), losses.values(), strict=True):
        assert loss["by_frame"][0] is None
        assert len(loss["by_frame"]) == frames
        assert min(loss["by_frame"][1:]) <= loss["mean"] <= max(loss["by_frame"][1:])
        times = [level["time"] for level in loss["by_noise_level"]]
        assert times == sorted(times)
        assert len(set(times)) == 5
        assert all(level["loss"] > 0 for level in loss["by_noise_level"])


def test_the_page_shows_the_worst_the_median_and_the_best_clip(result: tuple[Path, dict[str, Any]]) -> None:
    source = (result[0] / "evaluation.html").read_text()
    assert [source.count(f"<figcaption>{rank}, ") for rank in ("worst", "median", "best")] == [1, 1, 1]
    assert source.count("data:video/mp4;base64,") == 3
    assert "http" not in source.replace("http://www.w3.org/2000/svg", "")
    assert source.count("<svg") == 2


def test_numbers_repeat_exactly_and_a_model_against_itself_differs_by_nothing(
    result: tuple[Path, dict[str, Any]], exported: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    again = evaluated(tmp_path / "again", exported, exported, "--data", tiny_dataset, *FEW)
    assert again["models"]["A"] == again["models"]["B"] == result[1]["models"]["A"]
    assert {value["mean"] for value in again["difference"].values()} <= {0.0, None}


def test_two_ways_to_sample_are_compared_on_the_same_draws(
    result: tuple[Path, dict[str, Any]], model: list[object], tmp_path: Path
) -> None:
    found = evaluated(tmp_path, *model, "--versus", "--temperature 0.5 --iterations 1", *FEW)
    one, two = (found["models"][name] for name in "AB")
    assert one == result[1]["models"]["A"]
    assert (one["sampling"]["iterations"], two["sampling"]["iterations"]) == (3, 1)
    assert two["sampling"]["temperature"] == [0.5, 0.5, 0.5]
    pairs = np.array(two["scores"]["psnr"]) - np.array(one["scores"]["psnr"])
    assert found["difference"]["psnr"]["mean"] == pytest.approx(pairs.mean())
    assert found["difference"]["psnr"]["low"] < pairs.mean() < found["difference"]["psnr"]["high"]
    assert two["losses"] == one["losses"]


def test_the_interval_covers_a_repeat_with_other_seeds(model: list[object], tmp_path: Path) -> None:
    first = evaluated(tmp_path / "1", *model, "--clips", "2", "--seeds", "0", "1", "2")["models"]["A"]["measures"]
    other = evaluated(tmp_path / "2", *model, "--clips", "2", "--seeds", "3", "4", "5")["models"]["A"]["measures"]
    for name in ("psnr", "ssim", "flicker"):
        assert first[name]["low"] <= other[name]["mean"] <= first[name]["high"]


def test_fvd_takes_a_network_from_the_disk_and_nothing_else(
    model: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.jit.script(Pooling()).save(str(tmp_path / "i3d.pt"))
    assert "the clips have 9 frames, I3D needs at least 10" in refused([*model, *FEW, "--fvd-weights", tmp_path / "i3d.pt"], capsys)
    monkeypatch.setattr("trainer.inspection.evaluation.fvd.FEWEST_FRAMES", 9)
    found = evaluated(tmp_path / "found", *model, *FEW, "--fvd-weights", tmp_path / "i3d.pt")
    assert found["models"]["A"]["fvd"] > 0
    assert "FVD needs I3D as TorchScript" in refused([*model, *FEW, "--fvd-weights", tmp_path / "none.pt"], capsys)
    (tmp_path / "text.pt").write_text("no network")
    assert "is not I3D as TorchScript" in refused([*model, *FEW, "--fvd-weights", tmp_path / "text.pt"], capsys)


def test_an_exported_model_has_no_data_set_of_its_own(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is exported and has no data set: name one with --data" in refused([exported], capsys)


def test_a_single_seed_gives_no_interval(model: list[object], tmp_path: Path) -> None:
    psnr = evaluated(tmp_path, *model, "--clips", "1", "--seeds", "0")["models"]["A"]["measures"]["psnr"]
    assert (psnr["low"], psnr["high"]) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--given", "3"], "--given 3: clips of 9x32x32 have 3 latent frames"),
        (["--seeds", "1", "1"], "at least one clip, and seeds that differ"),
        (["--versus", "--colour red"], "unrecognized arguments: --colour red"),
        (["--versus", "--condition motion=1"], "the model was not trained with the condition 'motion'"),
        (["--data", "/no/data"], "no data set at /no/data"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, model: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [] if "--seeds" in arguments else ["--clips", "1", "--seeds", "0"]
    assert message in refused([*model, *few, *arguments, "-o", tmp_path / "e"], capsys)


def test_vbench_s_videos_are_made_where_it_looks_for_them(
    exported: Path, cat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "vbench2_beta_i2v"
    (suite / "data" / "crop" / "1-1").mkdir(parents=True)
    cat.rename(suite / "data" / "crop" / "1-1" / "a cat.png")
    (suite / "vbench2_i2v_full_info.json").write_text(json.dumps([{"image_name": "a cat.png", "prompt_en": "a cat", "dimension": []}]))
    call = ["evaluate", str(exported), "--vbench", str(suite), "-o", str(tmp_path / "out")]
    assert main([*call]) == 0
    assert "5 for the crop 1-1, 5 of them new\nVBench is not installed" in capsys.readouterr().out
    videos = sorted((tmp_path / "out" / "vbench").iterdir())
    assert [path.name for path in videos] == [f"a cat-{index}.mp4" for index in range(5)]
    assert len({path.read_bytes() for path in videos}) == 5
    assert main([*call]) == 0
    assert "5 for the crop 1-1, 0 of them new" in capsys.readouterr().out
