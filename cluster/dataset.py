"""From the recipe's videos to its data sets, one per tokenizer: reused when the fingerprint is there, completed when interrupted.

Called by the commands and by readiness.py; the work itself is data_pipeline's, spread over Ray by encode.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cluster.encode import Progress, encode_dataset
from data_pipeline import manifest, storage
from data_pipeline.buckets import Bucket
from data_pipeline.chunks import Chunk, plan_chunks
from data_pipeline.codecs import Codecs, choose_codecs
from data_pipeline.encode import sample_for_fit
from data_pipeline.errors import UserError
from data_pipeline.estimate import check_buckets
from data_pipeline.living import advance
from data_pipeline.loader import TOKENIZER_FILE, TOKENIZER_FOLDER, Dataset, open_dataset
from data_pipeline.manifest import Manifest
from data_pipeline.records import ChunkRecord, require_clips
from data_pipeline.sources import Source, SourceList, list_sources
from data_pipeline.spec import EncodeSpec
from data_pipeline.storage import Location, S3Path
from data_pipeline.synthetic import write_synthetic
from data_pipeline.text import text_fingerprint
from data_pipeline.tokenizers import VideoTokenizer, tokenizer_fingerprint
from data_pipeline.tokenizers.description import Description
from data_pipeline.tokenizers.linear import LinearTokenizer
from trainer.config import RunConfig
from trainer.curriculum import Latents
from trainer.sizing import all_latents, latents_of

Encode = Callable[[Sequence[Chunk], EncodeSpec, Location, Location, int | None, Callable[[Progress], None]], list[ChunkRecord]]


@dataclass(frozen=True)
class EncodeJob:
    """A data set to be: its sources, what to make of them, and the folder that its fingerprint names."""

    sources: SourceList
    spec: EncodeSpec
    fingerprint: str
    folder: Location
    videos: str
    codecs: Codecs


def encode_spec(config: RunConfig, latents: Latents | None = None) -> EncodeSpec:
    """What the recipe asks of the encoder for the stages of these latents (none: of the first stage's): one bucket per distinct
    shape. Raises UserError naming the key."""
    latents = latents or all_latents(config)[0]
    codecs = chosen_codecs(config, latents)
    stages = [stage for stage in config.curriculum.stages if latents_of(config, stage) == latents]
    shapes = {(part.frames, part.height, part.width) for stage in stages for part in (stage, *stage.mix)}
    data = config.data
    try:
        return EncodeSpec(
            fps=data.fps,
            buckets=tuple(sorted(Bucket(*shape) for shape in shapes)),
            held_out=data.held_out,
            channels=codecs.channels,
            stride=codecs.stride,
            text_tokens=data.text_tokens,
            text_width=codecs.text_width,
            sources_per_shard=data.sources_per_shard,
            max_clips=data.max_clips,
            thresholds=data.filters,
            scene_threshold=data.scene_threshold,
            one_aspect=data.one_aspect,
            seed=config.seed,
        )
    except ValueError as error:
        raise UserError(f"data and curriculum.stages do not fit: {error}") from None


def chosen_codecs(config: RunConfig, latents: Latents) -> Codecs:
    """The tokenizer and the text encoder that the recipe names. Raises UserError naming the key."""
    data = config.data
    return choose_codecs(
        latents.tokenizer,
        data.text,
        channels=data.latent_channels,
        stride=latents.stride,
        text_width=data.text_width,
        text_tokens=data.text_tokens,
        template=data.text_template,
        dtype=data.tokenizer_dtype,
        pass_frames=data.tokenizer_frames,
    )


def find(config: RunConfig, spec: EncodeSpec) -> EncodeJob:
    """The data set of the first stage. Raises UserError as find_all does."""
    latents = all_latents(config)[0]
    return finished_job(config, spec, latents) if names_dataset(config) else job_of(config, *listed(config), spec, latents)


def find_all(config: RunConfig) -> dict[Latents, EncodeJob]:
    """Every data set of the recipe, in the order in which its stages need them. Raises UserError naming the key or file."""
    specs = {latents: encode_spec(config, latents) for latents in all_latents(config)}
    if names_dataset(config):
        return {latents: finished_job(config, spec, latents) for latents, spec in specs.items()}
    found = listed(config)
    return {latents: job_of(config, *found, spec, latents) for latents, spec in specs.items()}


def listed(config: RunConfig) -> tuple[SourceList, str, str]:
    """(the videos, where they are, what to call them), after drawing the synthetic ones if the recipe names no folder."""
    videos, captions, name = config.data.videos, config.data.captions, "synthetic"
    if videos is None:
        folder = draw_synthetic(config)
        videos, captions = str(folder), str(folder / "captions.csv")
    else:
        name = re.sub(r"[^\w.-]+", "-", Path(videos).resolve().stem)  # a glob has letters that a folder should not
    return list_sources(videos, captions, config.data.images), videos, name


def job_of(config: RunConfig, sources: SourceList, videos: str, name: str, spec: EncodeSpec, latents: Latents) -> EncodeJob:
    codecs = chosen_codecs(config, latents)
    fingerprint = manifest.dataset_fingerprint(sources.sources, spec, codecs.fingerprints)
    return EncodeJob(sources, spec, fingerprint, config.data_root / f"{name}-{fingerprint[:12]}", videos, codecs)


def names_dataset(config: RunConfig) -> bool:
    """Whether data.videos is a finished data set, such as an imported one, and no videos."""
    videos = config.data.videos
    return videos is not None and storage.size(storage.location(videos) / manifest.FILE) is not None


def finished_job(config: RunConfig, spec: EncodeSpec, latents: Latents) -> EncodeJob:
    """The data set that data.videos names. Raises UserError when it is not what the recipe needs."""
    folder = storage.location(str(config.data.videos))
    made, codecs = manifest.read(folder), chosen_codecs(config, latents)
    if codecs.tokenizer and codecs.tokenizer.fingerprint != made.tokenizer:
        raise UserError(f"{folder} was made with another tokenizer than data.tokenizer={latents.tokenizer}: name that one, or linear")
    for name in ("channels", "stride", "fps", "text_width", "text_tokens"):
        if getattr(made.spec, name) != getattr(spec, name):
            raise UserError(f"{folder} has {name} {getattr(made.spec, name)}, the recipe {getattr(spec, name)}: make them agree")
    if missing := sorted({bucket.id for bucket in spec.buckets} - set(made.buckets)):
        raise UserError(f"{folder} has no bucket {missing[0]}, which a stage of the recipe trains on; it has {', '.join(made.buckets)}")
    return EncodeJob(SourceList(()), made.spec, made.fingerprint, folder, str(folder), codecs)


def draw_synthetic(config: RunConfig) -> Path:
    """The folder of synthetic videos that the recipe describes; its name tells all that they depend on."""
    data, shapes = config.data, config.data.synthetic
    if data.captions is not None:
        raise UserError(f"data.captions={data.captions} describes no videos: name their folder too, data.videos=<folder>")
    if not data.fps.is_integer():
        raise UserError(f"data.fps={data.fps}: synthetic videos have a whole number of frames per second")
    fps = int(data.fps)
    root = Path(config.run.root) / "datasets" if isinstance(config.data_root, S3Path) else config.data_root
    folder = root / f"synthetic-videos-{shapes.clips}x{shapes.frames}x{shapes.size}-{fps}fps-{config.seed}"
    with writing(folder):
        write_synthetic(folder, shapes.clips, config.seed, shapes.size, shapes.frames, fps)
    return folder


def prepare(
    job: EncodeJob, workers: int | None, on_progress: Callable[[Progress], None], encode: Encode = encode_dataset
) -> tuple[Dataset, bool]:
    """(the finished data set, whether it was there already), encoded on `workers` CPUs, or on all that the cluster has.

    The caller says how many CPUs are the job's: the actors reserve none. What an interrupted call left behind is completed.
    Raises UserError when no training data comes of the videos, or when the folder cannot be written.
    """
    newest = opened(job)
    if newest and not newest.manifest.pending:
        return newest, True
    tokenizer_folder = make_tokenizer(job)
    records = encode(plan_chunks(job.sources.sources, job.spec), job.spec, tokenizer_folder, job.folder, workers, on_progress)
    while newest is None or newest.manifest.pending:
        newest = write_generation(job, next_manifest(job, newest.manifest if newest else None, records, 0))
    return newest, False


def opened(job: EncodeJob) -> Dataset | None:
    """The newest generation of the data set, None before the first."""
    return None if storage.size(job.folder / manifest.FILE) is None else open_dataset(job.folder)


def make_tokenizer(job: EncodeJob) -> Location:
    """The folder of the data set's tokenizer, which is made if it is not there. Raises UserError when a bucket can get no clip."""
    check_buckets(job.sources.sources, job.spec, job.videos)
    tokenizer_folder = job.folder / TOKENIZER_FOLDER
    if storage.size(tokenizer_folder / TOKENIZER_FILE) is None:  # which is written last
        tokenizer = job.codecs.tokenizer or fit_tokenizer(job.sources.sources, job)
        with writing(job.folder):
            job.codecs.save_text(tokenizer_folder)
            save_tokenizer(tokenizer, tokenizer_folder)
    return tokenizer_folder


def next_manifest(job: EncodeJob, old: Manifest | None, records: Sequence[ChunkRecord], pending: int) -> Manifest:
    """The next generation of the data set, or its first, with the chunks of `records`; `pending` sources are still to come. Raises
    UserError when none are and a bucket has got no clip."""
    if old:
        if not pending:
            require_clips(manifest.train_sources(records), list(old.buckets), job.videos)
        return advance(old, records, pending)
    folder = job.folder / TOKENIZER_FOLDER
    fingerprints = {"tokenizer": tokenizer_fingerprint(folder), "text": text_fingerprint(folder, job.spec)}
    return manifest.build(records, job.spec, job.videos, fingerprint=job.fingerprint, pending=pending, **fingerprints)


def write_generation(job: EncodeJob, made: Manifest) -> Dataset:
    """The newest one from now on: this one, or what another writer has made of it first."""
    with writing(job.folder):
        manifest.write(made, job.folder)
    return open_dataset(job.folder)


def fit_tokenizer(sources: Sequence[Source], job: EncodeJob) -> LinearTokenizer:
    """The linear basis of the data itself."""
    try:
        return LinearTokenizer.fit(sample_for_fit(sources, job.spec), job.spec.channels, job.spec.stride)
    except ValueError as error:
        raise UserError(f"{job.videos}: {error}") from None


def save_tokenizer(tokenizer: VideoTokenizer | Description, folder: Location) -> None:
    """Into a folder on a disk or in S3."""
    if isinstance(folder, Path):
        tokenizer.save(folder)
        return
    with TemporaryDirectory(prefix="videomar-tokenizer-") as made:
        tokenizer.save(Path(made))
        storage.copy_tree(Path(made), folder, last=TOKENIZER_FILE)


@contextmanager
def writing(folder: Location) -> Iterator[None]:
    """Says in the user's words that the operating system lets nothing be written to a folder below data.root."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): set data.root to a folder that can be") from error
