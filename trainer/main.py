"""The command line: a thin table of commands; `train` is the default. `python trainer/main.py [command] key=value ...`

The only file of trainer/ that names cluster/, and only in the table: a command's module is imported when it is called.
"""

from __future__ import annotations

import sys

if not __package__:  # run as a script: look modules up beside trainer/, not inside it, where names such as inspection would clash
    sys.path[0] = sys.path[0].rpartition("/")[0]

import importlib
import os
import signal

from data_pipeline.errors import UserError

COMMANDS = {
    "train": ("cluster.train_command", "train (the default): encode the videos if needed, run the curriculum, sample, write the report"),
    "sample": ("trainer.commands.sample", "sample <model> --image cat.png --text ...: continue an image or a video with a trained model"),
    "export": ("trainer.commands.export", "export <run> -o folder: the model as a folder that loads without Ray or DeepSpeed"),
    "evaluate": ("trainer.commands.evaluate", "evaluate <model> [<model>]: losses, drift and motion on held-out clips, compared; a page"),
    "status": ("trainer.commands.status", "status <run>: stage, step, layout, time to go, goodput and last failures of a run"),
    "runs": ("trainer.commands.runs", "runs: the runs under run.root, with their state, step and held-out loss"),
    "fork": (
        "trainer.commands.fork",
        "fork <run> --step N key=value ... run.name=new: a new run that goes on from a commit with changed keys",
    ),
    "rollback": ("trainer.commands.rollback", "rollback <run> --step N: take a run back to an earlier commit; later ones are set aside"),
    "prune": ("trainer.commands.prune", "prune <run>: what can be deleted of a run's commits, and with --yes the deleting"),
    "plan": ("trainer.commands.plan", "plan: the layout, memory and step time of every stage on a cluster that need not be there"),
    "study": ("trainer.commands.study", "study --axis width=96,128,192: a run per combination of values, and the law of loss over compute"),
    "simulate": ("cluster.simulate", "simulate: a recipe's days on clusters that need not be there: goodput, and time lost by cause"),
    "encode": ("cluster.encode_command", "encode: only encode the videos of a recipe, into data.root"),
    "doctor": ("trainer.commands.doctor", "doctor <data set>: verify its checksums, counts and order, mend its indices, describe it"),
    "verify": (
        "cluster.verify_command",
        "verify: how well the tokenizer gives back the recipe's videos, with a picture; hours and bytes to expect",
    ),
    "chaos": ("cluster.chaos", "chaos --minutes 10 --seed 3: do faults to a small run, and prove that it is the run that met none"),
    "stop": ("cluster.stop_command", "stop: end a live run in order, with a commit; its command continues it"),
    "dataset": ("trainer.commands.dataset", "dataset folder=<data set>: add videos to it, remove some, give others new captions"),
}

HELP = """usage: python trainer/main.py [command] [key=value ...]

commands:
{commands}

Keys are those of the recipe, dotted, e.g.
  python trainer/main.py data.videos=/path/to/videos train.lr=5e-4
  python trainer/main.py recipe=my-recipe.yaml run.name=second curriculum.stages.0.promotion.max_steps=200
The default recipe is trainer/recipes/toy.yaml; for the keys see README.md, Recipes and keys."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 when all was done, 1 when the run failed, 2 for a user's mistake (one line says which), 128 + a signal's number."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help", "help"} & set(arguments[:1]):
        print(HELP.format(commands="\n".join(f"  {text}" for _, text in COMMANDS.values())))
        return 0
    command = arguments.pop(0) if arguments and "=" not in arguments[0] else "train"
    try:
        if command not in COMMANDS:
            raise UserError(f"{command!r} is not a command: choose one of {', '.join(COMMANDS)}, or write overrides as key=value")
        module = importlib.import_module(COMMANDS[command][0])
        if {"-h", "--help"} & set(arguments) and hasattr(module, "HELP"):  # the others' options have a help of their own
            print(module.HELP)
            return 0
        return module.command(arguments, dict(os.environ))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}; what was done so far is kept, mend it and run again", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != signal.SIGTERM:
            raise
        print("\nstopped; the same command continues from the last commit", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, SystemExit) else signal.SIGINT)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as Ray does once it is up: clean up, then leave
    sys.exit(main())
