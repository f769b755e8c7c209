"""The `verify` command: how well the recipe's tokenizer gives back the user's own videos, as PSNR and SSIM and as a picture of
the clips beside what came back. Nothing is encoded for keeps. Takes the recipe's keys, as `train` does."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from cluster import dataset as datasets
from data_pipeline.encode import sample_for_fit
from data_pipeline.estimate import check_buckets, estimate
from data_pipeline.tokenizers import VideoTokenizer, open_tokenizer
from data_pipeline.tokenizers.description import Description
from data_pipeline.tokenizers.quality import verify
from trainer import config as configs

CLIPS = 32
PICTURE = "verify.png"

HELP = """usage: python trainer/main.py verify [key=value ...]

How well the recipe's tokenizer gives back your own videos: PSNR, SSIM and a picture of clips beside what came back; the hours and bytes
that encoding would make. Nothing is encoded for keeps.

examples:
  python trainer/main.py verify data.videos=/path/to/videos
  python trainer/main.py verify data.videos=/path/to/videos data.tokenizer=/path/to/weights

Keys are those of the recipe: see README.md, Recipes and keys."""


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """Prints the estimate of the whole data set too; the picture goes to the run's folder."""
    config = configs.load(arguments)
    job = datasets.find(config, datasets.encode_spec(config))
    sources = job.sources.sources
    check_buckets(sources, job.spec, job.videos)
    expected = estimate(sources, job.spec)
    print(f"data  {expected.sources} sources, about {expected.hours:.2f} h: at most {expected.clips} clips, {expected.bytes / 1e6:.0f} MB")
    picture = config.run_folder / PICTURE
    with datasets.writing(config.run_folder):
        quality = verify(_tokenizer(job), _unseen(job), picture)
    print(f"tokenizer {config.data.tokenizer} on {quality.clips} clips: PSNR {quality.psnr_first:.1f} dB in first frames, ", end="")
    print(f"{quality.psnr_later:.1f} dB in later ones, at worst {quality.worst_psnr:.1f} dB; ", end="")
    print(f"SSIM {quality.ssim_first:.3f} and {quality.ssim_later:.3f}")
    print(f"picture {picture}: frames above, what came back below")
    return 0


def _tokenizer(job: datasets.EncodeJob) -> VideoTokenizer:
    chosen = job.codecs.tokenizer
    if isinstance(chosen, Description):
        return open_tokenizer(chosen)
    return chosen or datasets.fit_tokenizer(job.sources.sources, job)


def _unseen(job: datasets.EncodeJob) -> Iterator[np.ndarray]:
    """Clips of sources that a fitted tokenizer was not fitted on, if there are more than those."""
    clips = sample_for_fit(job.sources.sources, job.spec, limit=2 * CLIPS, videos=job.videos)
    everything = list(islice(clips, 4 * CLIPS))
    return iter(everything[-CLIPS:])
