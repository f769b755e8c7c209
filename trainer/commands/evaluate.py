"""`evaluate`: a model, or two against each other, on held-out clips: losses, measures with intervals, drift, a page to look at."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline import storage
from data_pipeline.errors import UserError
from data_pipeline.loader import Dataset, open_dataset
from data_pipeline.write_video import write_mp4
from model.sampling import SamplingConfig
from trainer.commands.options import Options
from trainer.commands.sampling_options import add_sampling, sampling_of
from trainer.inspection.continuation import continued
from trainer.inspection.evaluation import page, vbench
from trainer.inspection.evaluation.clips import MEASURES, HeldOut, curves, generated, held_out, known, measured, summary
from trainer.inspection.evaluation.fvd import fvd
from trainer.inspection.evaluation.intervals import nan_mean, of_mean
from trainer.inspection.evaluation.losses import losses_by_bucket
from trainer.inspection.start import read_image
from trainer.inspection.trained import Trained, open_trained

EXAMPLE = """  python trainer/main.py evaluate runs/toy --clips 8 --seeds 0 1 2 -o evaluation/
  python trainer/main.py evaluate runs/toy runs/other -o comparison/         two models, the same clips and seeds
  python trainer/main.py evaluate runs/toy --versus "--guidance 3" -o guided/  two ways to sample from one model"""


@dataclass(frozen=True)
class Contender:
    """A model and how it samples, under the name it has in the results."""

    name: str
    path: str
    trained: Trained
    sampling: SamplingConfig


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """Write evaluation.json and evaluation.html into the folder; equal calls write equal numbers."""
    options = parser().read(arguments)
    contenders = contenders_of(options)
    if options.vbench:
        return for_vbench(contenders[0], options)
    dataset = dataset_for(options, contenders)
    clips = held_out(contenders[0].trained, dataset, options.clips, options.given)
    result, videos = evaluate(contenders, dataset, clips, options)
    storage.write_json(options.out / "evaluation.json", result)
    scores = result["models"]["A"]["scores"]
    picked = pick(scores, clips, videos, contenders[0].trained.fps)
    storage.write_bytes(options.out / "evaluation.html", page.page(result, picked).encode())
    for name, model in result["models"].items():
        psnr = model["measures"]["psnr"]
        print(f"{name}: PSNR {page.interval(psnr)} dB, copying {result['copying']['psnr']:.4g} dB")
    print(f"numbers {options.out / 'evaluation.json'}\npage    {options.out / 'evaluation.html'}")
    return 0


def parser() -> Options:
    options = Options("evaluate", "Measure a trained model on held-out clips.", EXAMPLE)
    options.add_argument("models", type=Path, nargs="+", help="one or two: a run's folder, a checkpoint's, or an exported one")
    options.add_argument("-o", "--out", type=Path, default=Path("evaluation"), metavar="FOLDER", help="default: evaluation")
    options.add_argument("--data", type=Path, metavar="FOLDER", help="an encoded data set; default: the first model's own")
    options.add_argument("--clips", type=int, default=8, metavar="N", help="held-out clips, at most")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="one set of videos per seed")
    options.add_argument("--given", type=int, default=1, metavar="N", help="latent frames that the model is given")
    options.add_argument("--versus", metavar="OPTIONS", help='compare with the same model sampled otherwise, e.g. "--guidance 3"')
    options.add_argument("--fvd-weights", type=Path, metavar="FILE", help="I3D as TorchScript, for FVD")
    options.add_argument(
        "--vbench", type=Path, metavar="FOLDER", help="vbench2_beta_i2v with its images: make VBench-I2V's videos, and its scores"
    )
    options.add_argument("--vbench-prompts", type=int, metavar="N", help="only the first N prompts")
    add_sampling(options)
    return options


def contenders_of(options: Namespace) -> list[Contender]:
    """One or two. Raises UserError."""
    if min(options.clips, len(options.seeds)) < 1 or len(set(options.seeds)) < len(options.seeds):
        raise UserError("evaluate needs at least one clip, and seeds that differ")
    if len(options.models) + (options.versus is not None) > 2:
        raise UserError("evaluate compares two: give two models, or one and --versus")
    opened = [open_trained(path) for path in options.models]
    made = [
        Contender(name, str(path), trained, sampling_of(options, trained.sampling))
        for name, path, trained in zip("AB", options.models, opened, strict=False)
    ]
    if options.versus is not None:
        other = Options("evaluate --versus", "", "")
        add_sampling(other)
        sampling = sampling_of(other.read(shlex.split(options.versus)), made[0].sampling)
        made.append(Contender("B", made[0].path, made[0].trained, sampling))
    for contender in made:
        contender.trained.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return made


def dataset_for(options: Namespace, contenders: list[Contender]) -> Dataset:
    """The data set to evaluate on. Raises UserError where a model reads another tokenizer's latents."""
    training = contenders[0].trained.training
    if options.data is None and training is None:
        raise UserError(f"{options.models[0]} is exported and has no data set: name one with --data")
    dataset = open_dataset(options.data) if options.data else training.dataset if training else None
    assert dataset is not None
    for contender in contenders:
        codec = contender.trained.codec
        if (codec.tokenizer.fingerprint, codec.statistics) != (dataset.manifest.tokenizer, dataset.manifest.statistics):
            raise UserError(f"{contender.path} reads another tokenizer's latents than {dataset.folder} holds")
    return dataset


def evaluate(contenders: list[Contender], dataset: Dataset, clips: HeldOut, options: Namespace) -> tuple[dict[str, Any], list[np.ndarray]]:
    """(everything that is reported, every contender's videos [N, F, H, W, 3] of the first seed)."""
    models: dict[str, Any] = {}
    first: list[np.ndarray] = []
    for contender in contenders:
        by_seed = []
        for seed in options.seeds:
            by_seed.append(generated(contender.trained, contender.sampling, clips, seed))
            print(f"  {contender.name}: seed {seed} done, {len(clips.keys)} clips", flush=True)
        reported, per_clip = summary(by_seed, clips)
        distance = fvd(np.concatenate(by_seed), clips.truth, options.fvd_weights) if options.fvd_weights else None
        first.append(by_seed[0])
        models[contender.name] = {
            "model": contender.path,
            "sampling": told(contender.sampling),
            "losses": losses_by_bucket(contender.trained, dataset, 4 * options.clips),
            "scores": {name: known(values) for name, values in per_clip.items()},
            "fvd": distance,
            **reported,
        }
    plain = {"copying": measured(clips.copied, clips), "truth": measured(clips.truth, clips)}
    result = {
        "dataset": dataset.id,
        "bucket": contenders[0].trained.buckets[-1].id,
        "clips": list(clips.keys),
        "seeds": options.seeds,
        "given": clips.given,
        "shown": clips.shown,
        "models": models,
        "difference": difference(models) if len(models) == 2 else None,
        "copying_curves": curves(clips.copied, clips),
        **{kind: {name: known([float(nan_mean(found[name], 0))])[0] for name in MEASURES} for kind, found in plain.items()},
    }
    return json.loads(json.dumps(result)), first


def told(sampling: SamplingConfig) -> dict[str, Any]:
    """How a contender samples, as values: temperature of the first three frames, everything else as it is."""
    plain = {name: value for name, value in vars(sampling).items() if not callable(value)}
    temperatures = [round(sampling.tau(frame), 4) for frame in range(3)]
    return {**plain, "guidance_schedule": sampling.guidance_schedule.__name__, "temperature": temperatures}


def for_vbench(contender: Contender, options: Namespace) -> int:
    """Make VBench-I2V's videos of the first model in <out>/vbench, and have them scored where VBench is installed."""
    trained, folder = contender.trained, options.out / "vbench"
    last, step = trained.buckets[-1], trained.codec.tokenizer.stride[0]
    ratio = vbench.nearest_ratio(last.height, last.width)
    wanted = vbench.prompts(options.vbench, ratio, options.vbench_prompts)
    frames = 1 + (last.frames - 1) // step

    def make(prompt: vbench.Prompt, path: Path) -> None:
        parts: list[np.ndarray] = []
        start = read_image(prompt.image, (last.height, last.width))
        continued(
            trained,
            start,
            prompt.text,
            frames,
            contender.sampling,
            options.seeds[0] * vbench.VIDEOS_PER_PROMPT + prompt.index,
            parts.append,
        )
        write_mp4(path, np.concatenate(parts), trained.fps)
        print(f"  {path.name}", flush=True)

    made = vbench.make_videos(wanted, folder, make)
    print(f"videos  {folder}: {len(wanted)} for the crop {ratio}, {made} of them new")
    scores = vbench.scores(options.vbench, folder, ratio, str(trained.model.null_text.device))
    if scores is None:
        print("VBench is not installed, so there are no scores: pip install vbench where its weights are, then run the same command again")
    else:
        storage.write_json(options.out / "vbench.json", scores)
        print(f"scores  {options.out / 'vbench.json'}")
    return 0


def difference(models: dict[str, Any]) -> dict[str, Any]:
    """B minus A, paired by clip and seed: the mean over clips and where the true one lies."""
    scores = [np.array([model["scores"][name] for name in MEASURES], dtype=float) for model in models.values()]
    return {name: vars(of_mean(list(row))) for name, row in zip(MEASURES, scores[1] - scores[0], strict=True)}


def pick(scores: dict[str, list[float | None]], clips: HeldOut, videos: list[np.ndarray], fps: float) -> list[tuple[str, str, bytes]]:
    """(rank, caption, mp4 of truth and models side by side) of the worst, median and best clip by the first model's PSNR."""
    order = np.argsort(np.array(scores["psnr"], dtype=float), kind="stable")
    places = {0: "worst", len(order) // 2: "median", len(order) - 1: "best"}
    shown = []
    for place, rank in places.items():
        clip = int(order[place])
        shown.append(
            (
                f"{rank}, {scores['psnr'][clip]:.1f} dB",
                clips.captions[clip],
                page.side_by_side([clips.truth[clip], *(one[clip] for one in videos)], fps),
            )
        )
    return shown
