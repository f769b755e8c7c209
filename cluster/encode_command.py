"""The `encode` command: a recipe's videos to finished data sets, and nothing else. Takes the recipe's keys, as `train` does.
Started again it goes on where it was."""

from __future__ import annotations

from cluster import dataset as datasets
from cluster import session, summary
from cluster.progress import Terminal
from cluster.run_folder import check_writable
from data_pipeline.storage import S3Path
from trainer import config as configs

HELP = """usage: python trainer/main.py encode [key=value ...]

Encode the videos of a recipe into data.root and nothing else; started again it goes on where it was.

examples:
  python trainer/main.py encode data.videos=/path/to/videos data.captions=/path/to/captions.csv
  python trainer/main.py encode recipe=videomar-256 data.videos=s3://bucket/videos data.root=s3://bucket/datasets

Keys are those of the recipe: see README.md, Recipes and keys."""


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """0 when every video has its outcome; whatever is missing is raised as a UserError that lists it."""
    config, terminal = configs.load(arguments), Terminal()
    if not isinstance(config.data_root, S3Path):
        check_writable(config.data_root, "data.root")
    jobs = datasets.find_all(config)
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in environment
    address = config.cluster.address or environment.get("RAY_ADDRESS") or ("auto" if inside_job else None)
    workers = config.cluster.workers * config.cluster.cpus_per_worker
    try:
        with session.connect(address, workers) as ray_session:
            for job in jobs.values():
                terminal.say(f"data  {len(job.sources.sources)} videos in {job.videos}")
                dataset, reused = datasets.prepare(job, workers if ray_session.private else None, terminal.encoding)
                for line in summary.dataset_lines(job, dataset, reused):
                    terminal.say(line)
    finally:
        terminal.end()
    return 0
