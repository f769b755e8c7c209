"""RunConfig: a recipe (YAML) with dotted overrides, validated once at the edge. One grammar for every command; nothing below reads YAML."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from data_pipeline.errors import UserError
from data_pipeline.storage import Location, location
from trainer.curriculum import Mix, Promotion, Stage
from trainer.guard import GuardRule
from trainer.sections import (
    ClusterSection,
    DataSection,
    MetricsSection,
    ModelSection,
    ParallelSection,
    PlanSection,
    ProfileSection,
    RunSection,
    SampleSection,
    Section,
    SimulateSection,
    TrainSection,
)

RECIPES = Path(__file__).parent / "recipes"


class CurriculumSection(Section):
    stages: Annotated[list[Stage], Field(min_length=1)]


class RunConfig(Section):
    """Everything a run is made of."""

    recipe: str = "toy"
    seed: int = 0
    run: RunSection = RunSection()
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    cluster: ClusterSection = ClusterSection()
    parallel: ParallelSection = ParallelSection()
    train: TrainSection = TrainSection()
    guard: GuardRule = GuardRule()
    profile: ProfileSection = ProfileSection()
    curriculum: CurriculumSection
    sample: SampleSection = SampleSection()
    plan: PlanSection = PlanSection()
    simulate: SimulateSection = SimulateSection()
    metrics: MetricsSection = MetricsSection()

    @model_validator(mode="after")
    def samples_tell_what_was_trained(self) -> RunConfig:
        if unknown := sorted(set(self.sample.conditions) - set(self.train.conditions)):
            raise ValueError(f"sample.conditions names {unknown[0]}, which train.conditions does not: add it there")
        return self

    @property
    def run_folder(self) -> Path:
        assert self.run.name is not None, "resolved by load()"
        return Path(self.run.root) / self.run.name

    @property
    def data_root(self) -> Location:
        return location(self.data.root) if self.data.root else Path(self.run.root) / "datasets"


# Keys that may differ between two starts of one run: they change where and how fast it runs, never its numbers (the guard's: only from
# here on, what it has decided stands).
FREE_KEYS = (
    "recipe",  # where the keys come from
    "run.root",
    "cluster",
    "parallel.tp",
    "parallel.megatron_sp",
    "parallel.sp",
    "parallel.zero",
    "parallel.offload",
    "train.init.from",
    "train.micro_batch",
    "train.checkpointing",
    "train.compile",
    "train.preflight",
    "train.commit_every",
    "train.permanent_every",
    "train.keep_commits",
    "train.max_restarts",
    "guard",
    "profile",
    "sample",
    "plan",
    "simulate",
    "metrics",
    "data.root",
    "data.cache",
    "data.cache_bytes",
)


def load(arguments: list[str]) -> RunConfig:
    """The config of `key=value` arguments over their recipe (`recipe=` a shipped name or a path). Raises UserError."""
    overrides = dict(split_override(argument) for argument in arguments)
    recipe = str(overrides.pop("recipe", "toy"))
    tree = read_recipe(recipe)
    for key, value in overrides.items():
        place(tree, key, value)
    tree["recipe"] = recipe
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error)) from None
    if config.run.name is None:
        folder = f"-{Path(config.data.videos).resolve().name}" if config.data.videos else ""
        config = config.model_copy(
            update={"run": config.run.model_copy(update={"name": Path(recipe).name.removesuffix(".yaml").removesuffix(".yml") + folder})}
        )
    return config


def split_override(argument: str) -> tuple[str, Any]:
    """('a.b', value) of 'a.b=value'; the value is read as YAML."""
    key, equals, text = argument.partition("=")
    if not equals or not key:
        raise UserError(f"{argument!r} is not key=value: write overrides as train.lr=1e-3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        with contextlib.suppress(ValueError):
            value = float(value)
    return key, value


def read_recipe(recipe: str) -> dict[str, Any]:
    """The tree of a shipped recipe or of a YAML file."""
    path = RECIPES / f"{recipe}.yaml" if not recipe.endswith((".yaml", ".yml")) else Path(recipe)
    if not path.is_file():
        shipped = ", ".join(sorted(found.stem for found in RECIPES.glob("*.yaml")))
        raise UserError(f"recipe={recipe}: no such recipe; give a path to a .yaml file or one of {shipped}")
    try:
        tree = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections")
    return tree


def place(tree: Any, key: str, value: Any) -> None:
    """Set a dotted key in a tree of mappings and lists, e.g. curriculum.stages.0.promotion.max_steps."""
    *parents, last = key.split(".")
    for part in parents:
        tree = tree[list_index(tree, part, key)] if isinstance(tree, list) else tree.setdefault(part, {})
        if not isinstance(tree, dict | list):
            raise UserError(f"{key}: {part} is a value, not a section")
    tree[list_index(tree, last, key) if isinstance(tree, list) else last] = value


def list_index(items: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise UserError(f"{key}: {part!r} is not one of the {len(items)} entries 0..{len(items) - 1}")
    return int(part)


def known_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key of the recipe."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + (field.alias or name))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
        elif is_dataclass(field.annotation):
            keys += [f"{prefix}{name}.{part.name}" for part in fields(field.annotation)]
    return keys


def explain(error: ValidationError) -> str:
    """One line for the first thing wrong: the key, what is the matter, and for an unknown key the nearest known one."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        nearest = nearest_key(key)
        return f"{key}: unknown key" + (f"; did you mean {nearest}?" if nearest else "; see README.md, Recipes and keys")
    if first["type"] in ("missing", "missing_argument"):
        return f"{key}: missing; the recipe must give it"
    value, problem = first.get("input"), first["msg"].removeprefix("Value error, ")
    if not key:  # two sections do not fit together; the message names the keys
        return problem
    shown = f"={value}" if isinstance(value, str | int | float | bool | None) else ""
    return f"{key}{shown}: {problem[0].lower()}{problem[1:]}"


def nearest_key(key: str) -> str | None:
    """The known key that an unknown one was most likely meant to be."""
    *parents, last = key.split(".")
    if key.startswith("curriculum.stages."):
        names = [field.name for kind in (Stage, Promotion, Mix) for field in fields(kind)]
        return next((".".join([*parents, name]) for name in difflib.get_close_matches(last, names, 1, 0.5)), None)
    return next(iter(difflib.get_close_matches(key, known_keys(), 1, 0.6)), None)


def dump(config: RunConfig) -> str:
    """The resolved recipe as YAML; `load` of it gives the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def fixed_keys(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a resolved recipe without FREE_KEYS: what a run's numbers depend on."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if prefix + key not in FREE_KEYS:
            found |= fixed_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def recipe_hash(config: RunConfig) -> str:
    """A name for what a run's numbers depend on."""
    fixed = fixed_keys(config.model_dump(mode="json", exclude={"run": True}))
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def saved(run: Path) -> RunConfig:
    """The resolved recipe that a run wrote down."""
    path = run / "config.yaml"
    try:
        return RunConfig.model_validate(read_recipe(str(path)))
    except ValidationError as error:
        raise UserError(f"{path} is of another version of this code: {explain(error)}") from None
