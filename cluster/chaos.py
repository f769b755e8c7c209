"""The `chaos` command: the same run twice on Ray hosts of its own, once left alone and once with faults at seeded times, and a verdict
whether they are the same run.

    python trainer/main.py chaos --minutes 10 --seed 3

Called by a person, by tests and by CI; it starts `train` as they would, in processes of its own, and knows only run folders.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cluster import faults
from cluster.faults import Fault, Injector
from cluster.hosts import Hosts, Network
from cluster.session import REPOSITORY
from cluster.verdict import compare
from data_pipeline.errors import UserError
from data_pipeline.loader import open_dataset
from trainer import config as configs
from trainer import lease
from trainer.commands.options import Options
from trainer.config import RunConfig
from trainer.events import read_events
from trainer.goodput import goodput
from trainer.metrics import last_step, read_metrics

EXAMPLE = """  python trainer/main.py chaos --minutes 10 --seed 3
  python trainer/main.py chaos --minutes 3 --kinds worker,hang,node train.commit_every=5"""
STEPS_PER_MINUTE = 180  # of the three stages together: on two quiet cores about a third of the time
STAGES = (
    ("short", 5, 32, 256, 0.5),
    ("longer", 9, 32, 384, 0.3),
    ("larger", 9, 48, 864, 0.2),
)  # frames, pixels, tokens (8 clips), share of the steps
RECIPE = [
    "data.synthetic.clips=32",
    "data.synthetic.size=48",
    "data.synthetic.frames=10",
    "train.micro_batch=4",  # with one worker as with two: the same sums, to the bit, so that rounding does not grow into another run
    "train.commit_every=10",
    "train.evaluate_every=40",
    "train.evaluate_samples=4",
    "train.max_restarts=8",
    "cluster.silence=4",
    "cluster.min_workers=1",
    "sample.videos=2",
    "sample.iterations=2",
    "sample.head_steps=4",
]
RECOVERY_SECONDS = 240.0
LOOK_SECONDS = 0.2
RETRY_SECONDS = 1.0
MOST_STARTS = 40


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """0 when both runs are equal and every planned fault was met, else 1."""
    options = parser().read(arguments)
    kinds = chosen(options)
    root = Path(options.root).absolute() / time.strftime(f"chaos-seed-{options.seed}-%Y%m%d-%H%M%S")
    recipe = [*RECIPE, f"curriculum.stages={json.dumps(stages(options.minutes))}", *options.overrides, f"run.root={root}"]
    with ExitStack() as cleanup:
        network = Network() if options.network else None
        if network:
            cleanup.callback(network.close)
        hosts = cleanup.enter_context(Hosts(2, 1, environment, network))
        recipe.append(f"cluster.address={hosts.address}")
        print(f"hosts {hosts.count} and a head, at {hosts.address}; runs in {root}", flush=True)
        encode(recipe, hosts, root)
        unbroken = cleanup.enter_context(Job("unbroken", recipe, hosts))
        unbroken.finish()
        print(f"unbroken run: {last_step(unbroken.run)} steps in {unbroken.seconds:.0f} s", flush=True)
        broken = cleanup.enter_context(Job("chaos", recipe, hosts))
        injector = Injector(broken.run, broken.config, hosts, network, options.cut_seconds)
        planned = faults.plan(options.seed, options.minutes, kinds)
        met = [*disturb(broken, injector, planned, options.minutes)]
        broken.finish()
    verdict = judge(unbroken, broken, met) | {"seed": options.seed, "minutes": options.minutes, "kinds": kinds, "planned": len(planned)}
    verdict["passed"] = verdict["equal"] and len(met) == len(planned)
    (root / "verdict.json").write_text(json.dumps(verdict, indent=1) + "\n")
    print("\n".join(lines(verdict, root)), flush=True)
    return 0 if verdict["passed"] else 1


def parser() -> Options:
    options = Options("chaos", "Do faults to a small run and prove that it is the run that met none.", EXAMPLE)
    options.add_argument("--minutes", type=float, default=10.0, metavar="M", help="how long faults go on (default 10)")
    options.add_argument("--seed", type=int, default=0, metavar="N", help="of the faults: which, when and to whom")
    options.add_argument("--kinds", metavar="A,B", help=f"only these of {', '.join(faults.KINDS)}")
    options.add_argument("--network", action="store_true", help="put the hosts into network namespaces, so that their link can be cut")
    options.add_argument("--cut-seconds", type=float, default=30.0, metavar="S", help="how long a link stays cut (default 30)")
    options.add_argument("--root", default="runs", metavar="FOLDER", help="where the folder of both runs is made (default runs)")
    options.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the recipe")
    return options


def chosen(options: Namespace) -> list[str]:
    """The kinds of faults that can happen. Raises UserError for one that is unknown."""
    possible = [kind for kind in faults.KINDS if kind != "link" or options.network]
    wanted = options.kinds.split(",") if options.kinds else possible
    if unknown := [kind for kind in wanted if kind not in possible]:
        raise UserError(f"--kinds {unknown[0]}: choose of {', '.join(possible)}" + ("" if options.network else "; link needs --network"))
    return wanted


def stages(minutes: float) -> list[dict[str, Any]]:
    """The toy curriculum, as long as the faults last on two cores."""
    return [
        {
            "name": name,
            "frames": frames,
            "height": pixels,
            "width": pixels,
            "tokens_per_step": tokens,
            "promotion": {"max_steps": max(2, round(share * minutes * STEPS_PER_MINUTE))},
        }
        for name, frames, pixels, tokens, share in STAGES
    ]


def encode(recipe: Sequence[str], hosts: Hosts, root: Path) -> None:
    """The data set of both runs, whole before the first begins: what an epoch reads of one that grows depends on when it begins."""
    root.mkdir(parents=True)
    done = subprocess.run([*main(hosts), "encode", *recipe], env=hosts.environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))


def main(hosts: Hosts) -> list[str]:
    """The command line, on the head's side of the network."""
    return [*hosts.within(0), sys.executable, str(REPOSITORY / "trainer" / "main.py")]


class Job:
    """`train` as a user starts it, and starts it again when it ends before the run does."""

    def __init__(self, name: str, recipe: Sequence[str], hosts: Hosts) -> None:
        self._arguments = [*recipe, f"run.name={name}"]
        self.config: RunConfig = configs.load(list(self._arguments))
        self.run = self.config.run_folder.absolute()
        self.steps = sum(stage.promotion.max_steps for stage in self.config.curriculum.stages)
        self.starts = 0
        self._hosts, self._began = hosts, time.monotonic()
        self._log = self.run.parent / f"{name}.log"
        self.seconds = 0.0
        self._process = self._start()

    def over(self) -> bool:
        """Whether the run has ended. A command that failed is started again: that is what whoever keeps jobs alive would do."""
        self._hosts.tend()
        if self._process.poll() is None:
            return False
        if not self._finished():
            if self._process.returncode == 2 and self.starts == 1:
                raise UserError(self.said().strip().splitlines()[-1].removeprefix("error: "))
            if self.starts > MOST_STARTS:
                raise RuntimeError(f"the run does not end: {self.said()}")
            time.sleep(RETRY_SECONDS)
            self._process = self._start()
            return False
        self.seconds = self.seconds or time.monotonic() - self._began
        return True

    def finish(self) -> None:
        while not self.over():
            time.sleep(LOOK_SECONDS)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        """End the command if it still runs; what it has started ends with the hosts."""
        self._process.kill()
        self._process.wait()

    def said(self) -> str:
        """The end of what the command has printed."""
        return self._log.read_text()[-3000:]

    def _finished(self) -> bool:
        return any(event["event"] == "finish" for event in read_events(self.run))

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        command = [*main(self._hosts), "train", *self._arguments]
        with self._log.open("ab") as log:
            return subprocess.Popen(command, env=self._hosts.environment, stdout=log, stderr=log, start_new_session=True)


def disturb(job: Job, injector: Injector, planned: Sequence[Fault], minutes: float) -> Iterator[dict[str, Any]]:
    """Do one fault after the other while the run steps, each when its time or its share of the steps has come and the one before is
    overcome. Yields what came of each."""
    began = time.monotonic()
    for fault in planned:
        share = fault.at / (60 * minutes)
        while not job.over():
            due = time.monotonic() - began >= fault.at or last_step(job.run) >= share * job.steps
            if due and stepping(job.run, 0.0):
                happened, generation = time.time(), lease.current(job.run)
                try:
                    done = injector.do(fault)
                except (OSError, LookupError):
                    continue  # nothing to do it to just now
                if done.breaks:
                    wait_for_recovery(job, happened)
                found = recovery(read_events(job.run), generation, happened) if done.breaks else {}
                told = {"kind": fault.kind, "target": done.target, "at": round(time.monotonic() - began, 1), **found}
                print(f"fault {json.dumps(told)}", flush=True)
                yield told
                break
            time.sleep(LOOK_SECONDS)


def stepping(run: Path, since: float) -> bool:
    """Whether the newest generation trains, and has made its first step after a moment (Unix seconds)."""
    passed = [event for event in read_events(run) if event["event"] == "milestone" and event["name"] == "stepped"]
    return bool(passed) and passed[-1]["generation"] == lease.current(run) and passed[-1]["at"] > since


def wait_for_recovery(job: Job, happened: float) -> None:
    deadline = time.monotonic() + RECOVERY_SECONDS
    while not job.over() and not stepping(job.run, happened) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)


def recovery(events: Sequence[dict[str, Any]], generation: int, happened: float) -> dict[str, Any]:
    """How a fault was overcome: the cause that the run named, and the seconds from the fault to its detection, to the next generation and
    to each milestone of that one; of the first generation after it that has made a step."""
    later = [event for event in events if event["time"] >= happened]
    failure = next((event for event in later if event["event"] == "failure"), None)
    told = {"cause": failure["cause"], "detected": failure["detected"] - happened} if failure else {}
    steps = [event for event in later if event["event"] == "milestone" and event["name"] == "stepped" and event["generation"] > generation]
    if steps:
        of = [event for event in later if event.get("generation") == steps[0]["generation"]]
        told |= {"drawn": next(event["time"] for event in of if event["event"] == "generation") - happened}
        told |= {event["name"]: event["at"] - happened for event in of if event["event"] == "milestone"}
    return {name: round(value, 2) if isinstance(value, float) else value for name, value in told.items()}


def judge(unbroken: Job, broken: Job, met: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The verdict, JSON-able."""
    events, metrics = read_events(broken.run), read_metrics(broken.run)
    folder = next(event["data_folder"] for event in events if event["event"] == "start")
    comparison = compare(metrics, read_metrics(unbroken.run), broken.config, open_dataset(folder))
    account = goodput(events, metrics)
    return comparison.told() | {
        "goodput": round(account.ratio, 4),
        "lost_seconds": {cause: round(seconds, 2) for cause, seconds in account.lost.items()},
        "seconds": round(broken.seconds, 1),
        "unbroken_seconds": round(unbroken.seconds, 1),
        "generations": lease.current(broken.run),
        "starts": broken.starts,
        "faults": list(met),
        "recovery_seconds": {
            kind: [fault.get("stepped") for fault in met if fault["kind"] == kind] for kind in sorted({fault["kind"] for fault in met})
        },
    }


def lines(verdict: dict[str, Any], root: Path) -> list[str]:
    """What the user reads."""
    told = [
        f"{kind}: next step after {', '.join(f'{each:.1f} s' if each else '-' for each in seconds)}"
        for kind, seconds in verdict["recovery_seconds"].items()
    ]
    same = "equal" if verdict["equal"] else f"NOT equal (first at step {verdict['first_difference']})"
    once = "exactly once" if verdict["exactly_once"] and verdict["visits_equal"] else "NOT exactly once"
    return [
        *told,
        f"faults   {len(verdict['faults'])} of {verdict['planned']} planned, {verdict['generations']} generations",
        f"history  {same}, {once}: {verdict['steps']} steps, largest relative difference {verdict['largest_difference']:.1e}",
        f"goodput  {verdict['goodput']:.0%}; {verdict['seconds']:.0f} s in all, the unbroken run {verdict['unbroken_seconds']:.0f} s",
        f"verdict  {root / 'verdict.json'}",
    ]
