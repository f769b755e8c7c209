"""Synthetic videos: textured shapes that move, collide and turn over informative still backgrounds, as real mp4 files
with captions that say what moves where. The embedded default trains on them; tests decode them."""

import csv
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import storage
from data_pipeline.order import keyed_generator
from data_pipeline.write_video import write_mp4

VERSION = 3  # raise it when the same request would draw other pictures
MARKER = "synthetic.json"  # the request that the folder holds exactly
COLOURS = {
    "red": (214, 48, 49),
    "orange": (240, 140, 40),
    "yellow": (246, 214, 70),
    "green": (52, 168, 83),
    "cyan": (60, 196, 200),
    "blue": (45, 90, 200),
    "purple": (136, 72, 172),
    "pink": (238, 130, 170),
    "brown": (120, 80, 50),
    "white": (240, 240, 240),
    "grey": (128, 128, 132),
    "black": (28, 28, 34),
}
SHAPES = ("circle", "square", "triangle")
BACKGROUNDS = ("gradient", "striped", "checkered", "cloudy")
STEPS_PER_FRAME = 8  # of the physics: fast discs must not pass through each other


@dataclass(frozen=True)
class Body:
    """A moving shape. Lengths are in units of the picture's side, times in seconds, angles in radians."""

    shape: str
    colour: str
    radius: float
    position: tuple[float, float]  # x to the right, y downwards
    velocity: tuple[float, float]
    angle: float
    spin: float


@dataclass(frozen=True)
class Scene:
    """All that a synthetic clip shows; `waves` is the background's (turns per side, direction, phase, softness)."""

    bodies: tuple[Body, ...]
    background: str
    colours: tuple[str, str]
    waves: tuple[float, float, float, float]


def write_synthetic(folder: str | Path, clips: int, seed: int, size: int = 96, frames: int = 34, fps: int = 8) -> None:
    """Writes clip-00000.mp4 ... and captions.csv; does nothing when the folder already holds exactly this request.

    The folder appears whole or not at all, so any number of processes may ask for it at once. One that holds another request is
    replaced. Raises OSError when it cannot be written, or holds what is not ours to delete.
    """
    folder = Path(folder)
    request = {"version": VERSION, "clips": clips, "seed": seed, "size": size, "frames": frames, "fps": fps}
    if _request_in(folder) == request:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        drawn = Path(temporary) / "drawn"
        _draw(drawn, clips, seed, size, frames, fps)
        storage.write_json(drawn / MARKER, request)
        if _request_in(folder) not in (None, request):
            folder.rename(Path(temporary) / "replaced")
        try:
            drawn.rename(folder)
        except OSError:
            if _request_in(folder) != request:  # else somebody was faster
                raise


def _request_in(folder: Path) -> dict[str, Any] | None:
    """What a folder was drawn for, or None when it is not a finished folder of synthetic videos."""
    try:
        return json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return None


def _draw(folder: Path, clips: int, seed: int, size: int, frames: int, fps: int) -> None:
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("file", "caption"))
    for number in range(clips):
        scene = draw_scene(keyed_generator("synthetic", seed, number))
        name = f"clip-{number:05d}.mp4"
        write_mp4(folder / name, render(scene, size, frames, fps), fps)
        rows.writerow((name, caption(scene)))
    storage.write_bytes(folder / "captions.csv", table.getvalue().encode())


def draw_scene(generator: np.random.Generator) -> Scene:
    """A random scene of one to three bodies that start apart; everything in it comes from the generator."""
    colours = list(generator.permutation(list(COLOURS)))
    bodies: list[Body] = []
    wanted = int(generator.choice([1, 2, 2, 3]))
    for _ in range(50):
        if len(bodies) == wanted:
            break
        radius = generator.uniform(0.13, 0.21)
        position = generator.uniform(radius, 1 - radius, 2)
        if any(np.hypot(*(position - other.position)) < radius + other.radius for other in bodies):
            continue
        bodies.append(_draw_body(generator, colours.pop(), radius, position))
    waves = (generator.uniform(1, 3), generator.uniform(0, np.pi), generator.uniform(0, 1), generator.uniform(0.8, 2))
    return Scene(tuple(bodies), str(generator.choice(BACKGROUNDS)), (colours.pop(), colours.pop()), waves)


def caption(scene: Scene) -> str:
    """For example "a red circle moves left and a blue square turns over a green and white striped background"."""
    phrases = [_article(f"{body.colour} {body.shape} {_motion(body)}") for body in scene.bodies]
    moving = phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
    ground = f"{scene.colours[0]} and {scene.colours[1]} {scene.background} background"
    return f"{moving} over {_article(ground)}"


def render(scene: Scene, size: int, frames: int, fps: float) -> np.ndarray:
    """uint8 [frames, size, size, 3]; edges are anti-aliased by their exact distance to each pixel."""
    pixels = np.broadcast_to(_background(scene, size), (frames, size, size, 3)).copy()
    positions = simulate(scene.bodies, frames, fps)
    for number, body in enumerate(scene.bodies):
        angles = body.angle + body.spin * np.arange(frames) / fps
        for frame in range(frames):
            _paint(pixels[frame], body, positions[frame, number], angles[frame])
    return np.rint(pixels).astype(np.uint8)


def simulate(bodies: tuple[Body, ...], frames: int, fps: float) -> np.ndarray:
    """Positions [frames, bodies, 2] of discs that bounce elastically off the walls and off each other."""
    position = np.array([body.position for body in bodies])
    velocity = np.array([body.velocity for body in bodies])
    radius = np.array([body.radius for body in bodies])
    path = np.empty((frames, len(bodies), 2))
    for frame in range(frames):
        path[frame] = position
        for _ in range(STEPS_PER_FRAME):
            position = position + velocity / (fps * STEPS_PER_FRAME)
            out = ((position < radius[:, None]) & (velocity < 0)) | ((position > 1 - radius[:, None]) & (velocity > 0))
            velocity = np.where(out, -velocity, velocity)
            for i in range(len(bodies)):
                for j in range(i):
                    _collide(i, j, position, velocity, radius)
    return path


def _draw_body(generator: np.random.Generator, colour: str, radius: float, position: np.ndarray) -> Body:
    turns_in_place = generator.random() < 0.2
    speed = 0.0 if turns_in_place else generator.uniform(0.12, 0.35)
    heading = generator.integers(4) * np.pi / 2 + generator.uniform(-0.5, 0.5)
    spin = generator.choice([-1, 1]) * generator.uniform(0.7, 1.6)
    return Body(
        shape=str(generator.choice(SHAPES)),
        colour=str(colour),
        radius=float(radius),
        position=(float(position[0]), float(position[1])),
        velocity=(float(speed * np.cos(heading)), float(speed * np.sin(heading))),
        angle=float(generator.uniform(0, 2 * np.pi)),
        spin=float(spin if turns_in_place else spin * generator.integers(2)),
    )


def _article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _motion(body: Body) -> str:
    x, y = body.velocity
    if x == y == 0:
        return "turns"
    if abs(x) > abs(y):
        direction = "right" if x > 0 else "left"
    else:
        direction = "down" if y > 0 else "up"
    return f"moves {direction} and turns" if body.spin else f"moves {direction}"


def _collide(i: int, j: int, position: np.ndarray, velocity: np.ndarray, radius: np.ndarray) -> None:
    """Exchanges momentum along the line of centres when two discs (mass = area) touch and approach each other."""
    apart = position[i] - position[j]
    distance = np.hypot(*apart)
    normal = apart / max(distance, 1e-9)
    approach = (velocity[i] - velocity[j]) @ normal
    if distance < radius[i] + radius[j] and approach < 0:
        share = radius[j] ** 2 / (radius[i] ** 2 + radius[j] ** 2)
        velocity[i] -= 2 * share * approach * normal
        velocity[j] += 2 * (1 - share) * approach * normal


def _background(scene: Scene, size: int) -> np.ndarray:
    """float32 [size, size, 3]: a blend of the scene's two colours by a wave pattern of soft edges."""
    turns, direction, phase, softness = scene.waves
    grid = (np.arange(size) + 0.5) / size
    y, x = np.meshgrid(grid, grid, indexing="ij")
    along, across = x * np.cos(direction) + y * np.sin(direction), y * np.cos(direction) - x * np.sin(direction)
    wave = np.sin(2 * np.pi * (along * turns + phase))
    if scene.background == "gradient":
        blend = np.sin(2 * np.pi * (along * 0.5 + phase))
    elif scene.background == "striped":
        blend = np.tanh(softness * wave)
    elif scene.background == "checkered":
        blend = np.tanh(softness * wave * np.sin(2 * np.pi * (across * turns + phase)) * 2)
    else:
        warp = 0.35 * np.sin(2 * np.pi * (across * 1.3 + phase * 3)) + 0.2 * np.sin(2 * np.pi * (along * 2.1 - across))
        blend = np.sin(2 * np.pi * (along * turns * 0.5 + warp + phase))
    first, second = (np.array(COLOURS[name], np.float32) for name in scene.colours)
    mix = ((blend + 1) / 2)[..., None].astype(np.float32)
    return first * mix + second * (1 - mix)


def _paint(image: np.ndarray, body: Body, centre: np.ndarray, angle: float) -> None:
    """Paints a body into float32 [size, size, 3], in place, inside the square that bounds it."""
    size = len(image)
    low = np.clip(np.floor((centre - body.radius) * size - 1), 0, size).astype(int)
    high = np.clip(np.ceil((centre + body.radius) * size + 1), 0, size).astype(int)
    dx = ((np.arange(low[0], high[0]) + 0.5) / size - centre[0])[None, :] / body.radius
    dy = ((np.arange(low[1], high[1]) + 0.5) / size - centre[1])[:, None] / body.radius
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    coverage = np.clip(0.5 - _distance(body.shape, u, v) * body.radius * size, 0, 1)[..., None]
    texture = np.sin(3 * u)[..., None]  # from dark to bright across the body, so that turning is visible
    colour = np.clip(np.array(COLOURS[body.colour]) * (1 + 0.3 * texture) + 8 * texture, 0, 255)
    region = image[low[1] : high[1], low[0] : high[0]]
    region += coverage * (colour - region)


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the edge (negative inside) of a shape inscribed in the unit circle."""
    if shape == "circle":
        return np.hypot(u, v) - 1
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - np.sqrt(0.5)
    return np.maximum(np.abs(u) * np.sqrt(0.75) + v / 2, -v) - 0.5
