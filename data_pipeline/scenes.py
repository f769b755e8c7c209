"""Where one scene ends and the next begins: hard cuts, fades and dissolves, found from thumbnails while a file is decoded.
clips.py feeds it each picture's thumbnail; it knows nothing of files, clips or buckets."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

THUMBNAIL = (18, 32)  # rows, columns
LONGEST_PICTURE = 1.0  # seconds: a longer gap between two pictures is lost video, not a still one
LONGEST_TRANSITION = 2.5  # seconds
TRANSITION = -1  # the scene number of pictures between two scenes

RELATED = 0.3  # correlation below which the thumbnails of two consecutive pictures show different things
BLANK, CONTENT = 0.012, 0.03  # luma deviation: below the one a picture is blank, above the other it no longer is
RAMP_SECONDS, RAMP = 0.1, 1.03  # a transition changes what it changes by this factor in this time, for as long as it lasts
SPANS = tuple(0.25 * 2 ** (step / 2) for step in range(7))  # seconds: lengths of dissolves, close enough to miss none between
UNRELATED = 0.35  # the ends of a dissolve correlate less
MIXTURE, CONTRAST = 0.28, 1.1  # halfway it departs less from the mixture of its ends, and has at most this times its contrast


@dataclass(frozen=True)
class Transition:
    """Pictures shown after `start` and before `stop` (seconds) belong to neither of two scenes."""

    start: float
    stop: float

    def touches(self, first: float, last: float) -> bool:
        """Whether a clip whose frames are shown from `first` to `last` holds any of it."""
        return first < self.stop and last > self.start


@dataclass(frozen=True)
class View:
    """A picture's luma thumbnail: values [N] in 0..1, the same around their mean, and their deviation."""

    time: float
    luma: np.ndarray
    centred: np.ndarray
    spread: float

    @classmethod
    def of(cls, time: float, luma: np.ndarray) -> "View":
        values = luma.ravel().astype(np.float32) / 255
        centred = values - values.mean()
        return cls(time, values, centred, float(np.sqrt(centred @ centred / len(values))))


class SceneDetector:
    """Numbers scenes. A transition that ends a scene is known only when it is over: it is then added to `transitions`,
    and what was made of the pictures since its start has to be taken back."""

    def __init__(self, threshold: float) -> None:
        self.transitions: list[Transition] = []
        self._threshold = threshold  # mean luma difference of consecutive pictures, 0..1
        self._scene = 0
        self._blank = False
        self._rising = False  # a fade-in is under way
        self._dissolving: View | None = None  # the first picture of a dissolve that is under way
        self._views: list[View] = []  # of this scene, the last LONGEST_TRANSITION seconds

    def scene(self, time: float, luma: np.ndarray) -> int:
        """The scene of the picture shown at `time` (seconds), of which `luma` is a uint8 thumbnail; or TRANSITION."""
        view = View.of(time, luma)
        if not self._views:
            self._blank = view.spread < BLANK
        elif abs(view.time - self._views[-1].time) > LONGEST_PICTURE:
            self._begin(view)
        else:
            self._compare(self._views[-1], view)
        self._views.append(view)
        while self._views[0].time < time - LONGEST_TRANSITION or self._views[0].time > time:
            self._views.pop(0)
        return TRANSITION if self._rising or self._dissolving else self._scene

    @property
    def scenes(self) -> int:
        """How many there were so far."""
        return self._scene + 1

    def _compare(self, before: View, view: View) -> None:
        views = [*self._views, view]
        if view.spread < BLANK and not self._blank:
            self._end(ramp_start(self._views, [each.spread for each in self._views]), view)
        elif is_cut(before, view, self._threshold):
            self._begin(view)
        elif self._blank:
            if view.spread > CONTENT:
                self._end(max((dim.time for dim in self._views if dim.spread < BLANK), default=before.time), view)
                self._rising = True
        elif self._rising:
            self._rising = rises(views, [each.spread for each in views])
        elif self._dissolving:
            first = self._dissolving
            if view.time - first.time > LONGEST_TRANSITION or not rises(views, [distance(first, each) for each in views]):
                self._end(dissolve_start(views, first), view)
        else:
            self._dissolving = dissolved(views)

    def _begin(self, view: View) -> None:
        self._scene += 1
        self._views = []
        self._blank = view.spread < BLANK
        self._rising, self._dissolving = False, None

    def _end(self, start: float, view: View) -> None:
        """Ends the scene with a transition from `start` (seconds) to this picture, which begins the next."""
        self.transitions.append(Transition(start, view.time))
        self._begin(view)


def is_cut(one: View, two: View, threshold: float) -> bool:
    """Whether consecutive pictures are of different scenes: much brighter or darker in most places, or, if less so,
    unrelated."""
    difference = distance(one, two)
    return difference > threshold or (difference > threshold / 3 and correlation(one, two) < RELATED)


def correlation(one: View, two: View) -> float:
    """Of two thumbnails, -1..1; 1 when one of them is too flat to tell."""
    if min(one.spread, two.spread) < BLANK:
        return 1.0
    return float(one.centred @ two.centred) / (len(one.luma) * one.spread * two.spread)


def distance(one: View, two: View) -> float:
    """The mean luma difference of two thumbnails, 0..1."""
    return float(np.abs(one.luma - two.luma).mean())


def rises(views: Sequence[View], values: Sequence[float]) -> bool:
    """Whether a value of these pictures is still growing at the last."""
    earlier = _earlier(views, len(views) - 1)
    return earlier < 0 or values[-1] > RAMP * values[earlier]


def ramp_start(views: Sequence[View], values: Sequence[float]) -> float:
    """The time of the picture from which on a value fell without a pause until the last."""
    end = len(views) - 1
    while (earlier := _earlier(views, end)) >= 0 and values[earlier] > RAMP * values[end]:
        end = earlier
    return views[end].time


def dissolve_start(views: Sequence[View], first: View) -> float:
    """When a dissolve began that was found from picture `first` to the last of `views`: it may have been under way."""
    until = [view for view in views if view.time <= first.time] or [first]
    return ramp_start(until, [distance(view, views[-1]) for view in until])


def dissolved(views: Sequence[View]) -> View | None:
    """The earlier picture to which the last is unrelated by way of mixtures of both, if there is one.

    Movement makes pictures unrelated too, but what lies between is then no mixture; light changes keep them related.
    """
    last = views[-1]
    for span in SPANS:
        first = bisect_right(views, last.time - span, key=lambda view: view.time) - 1
        if first < 0:
            return None
        if correlation(views[first], last) < UNRELATED and is_mixture(views[first:]):
            return views[first]
    return None


def is_mixture(views: Sequence[View]) -> bool:
    """Whether the pictures halfway are the first one faded into the last. A mixture of unrelated pictures is paler than
    both, which what merely moves is not."""
    first, last = views[0], views[-1]
    change = last.luma - first.luma
    weights = [(view.time - first.time) / (last.time - first.time) for view in views]
    halfway = [(view, first.luma + weight * change) for weight, view in zip(weights, views, strict=True) if 0.35 < weight < 0.65]
    departures = [np.abs(mixture - view.luma).mean() for view, mixture in halfway]
    paler = [view.spread < CONTRAST * mixture.std() for view, mixture in halfway]
    return bool(halfway) and all(paler) and float(np.mean(departures)) < MIXTURE * float(np.abs(change).mean())


def _earlier(views: Sequence[View], index: int) -> int:
    """The last picture shown at least RAMP_SECONDS before another; -1 when there is none."""
    return bisect_right(views, views[index].time - RAMP_SECONDS, key=lambda view: view.time) - 1
