from pathlib import Path

import pytest
from PIL import Image

from cluster.verify_command import command
from data_pipeline.errors import UserError
from data_pipeline.synthetic import write_synthetic

STAGE = "{name: s, frames: 5, height: 32, width: 32, tokens_per_step: 64, promotion: {max_steps: 1}}"


@pytest.mark.parametrize("tokenizer", ["linear", "shipped"])
def test_it_says_how_well_the_users_own_videos_come_back_and_shows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer: str
) -> None:
    write_synthetic(tmp_path / "videos", clips=8, seed=1, size=32, frames=10)
    keys = [f"data.videos={tmp_path / 'videos'}", f"run.root={tmp_path / 'runs'}", "run.name=r", f"curriculum.stages=[{STAGE}]"]
    assert command([*keys, f"data.tokenizer={tokenizer}"], {}) == 0
    shown = capsys.readouterr().out
    assert "8 sources, about 0.00 h: at most 16 clips" in shown
    assert f"tokenizer {tokenizer} on " in shown
    assert "PSNR 2" in shown or "PSNR 3" in shown
    assert Image.open(tmp_path / "runs" / "r" / "verify.png").size[0] == 3 * 32
    assert not (tmp_path / "runs" / "datasets").exists()


def test_a_bucket_that_nothing_fits_is_refused_with_the_counts(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "videos", clips=8, seed=1, size=32, frames=4)
    with pytest.raises(UserError, match=r"fits bucket 17x32x32 \(too_short \d\)"):
        command([f"data.videos={tmp_path / 'videos'}", f"curriculum.stages=[{STAGE.replace('frames: 5', 'frames: 17')}]"], {})
