"""The dashboards of a run's training: where it stands, how fast it is, how its curriculum and its cluster move."""

from __future__ import annotations

from k8s.generate.expressions import SPENT, by, rate, shown
from k8s.generate.panels import Board, lines, stat

GOODPUT = f"sum {by()} ({rate('time_seconds_total', activity='step')}) / {SPENT}"
FORWARD = shown("rank_forward_seconds")
WORLD = shown("run_layout", dimension="world")
AGE = f"time() - {shown('last_commit_timestamp_seconds')}"
ETA = f"{shown('run_remaining_tokens')} / {rate('tokens_total')}"

RUN = Board(
    "run",
    "Run",
    (
        stat(
            "State", "What the run is doing: encoding, training or sampling.", "none", (f"{shown('run_state')} == 1", "{{run}}: {{state}}")
        ),
        stat(
            "Stage",
            "The curriculum's stage, from 1, and how many there are.",
            "none",
            (shown("run_stage"), "stage"),
            (shown("run_stages"), "of"),
        ),
        stat(
            "Step",
            "Optimiser steps done. Falls back to the last commit when a generation starts again.",
            "none",
            (shown("run_step"), "{{run}}"),
        ),
        stat("Time to go", "At the present speed, if no stage ends before its max_steps.", "s", (ETA, "{{run}}")),
        stat(
            "World",
            "Processes that train, and seats that the controller holds for them.",
            "none",
            (WORLD, "training"),
            (shown("run_seats"), "seats"),
        ),
        stat(
            "Generation",
            "Each start of the process group is one: a stage change, a failure, a restart.",
            "none",
            (shown("run_generation"), "{{run}}"),
        ),
        lines(
            "Loss by stage",
            "Training and held-out loss per supervised token. A new stage starts its own line: losses of two stages do not compare.",
            "none",
            (shown("loss"), "{{run}} {{stage}}"),
            (shown("held_out_loss"), "{{run}} {{stage}}, held out"),
        ),
        lines(
            "Loss by frame",
            "Training loss by target latent frame. Late frames far above early ones: the model does not use its context.",
            "none",
            (shown("frame_loss"), "{{run}} frame {{frame}}"),
        ),
        lines("Learning rate", "Of the last step.", "sci", (shown("learning_rate"), "{{run}}"), width=8),
        lines(
            "Gradient norm",
            "Before clipping. Rising for long means that it will diverge.",
            "none",
            (shown("gradient_norm"), "{{run}}"),
            width=8,
        ),
        lines(
            "Skipped steps",
            "Steps in the last minutes that changed nothing, for their gradients were not finite or far above the recent ones; and how "
            "often the guard took the run back to its last commit after too many of them in a row.",
            "short",
            (f"increase({shown('skipped_steps_total')}[$__rate_interval])", "{{run}} skipped"),
            (f"increase({shown('roll_backs_total')}[$__rate_interval])", "{{run}} taken back"),
            width=8,
        ),
        lines(
            "Layout",
            "Degrees of parallelism, ZeRO stage, micro-batch and accumulation.",
            "none",
            (shown("run_layout"), "{{run}} {{dimension}}"),
            kind="steps",
        ),
        lines(
            "Data consumed",
            "Samples of the stage's bucket that training has consumed, and the epoch it is in.",
            "short",
            (shown("run_samples"), "{{run}} samples"),
            (shown("run_epoch"), "{{run}} epoch"),
            kind="steps",
        ),
        lines(
            "PSNR of samples",
            "Generated frames against the truth once the run samples, beside what repeating the given frame gives.",
            "dB",
            (shown("sample_psnr_decibels"), "{{run}} {{video}}"),
            width=8,
        ),
        lines(
            "Dynamic degree of samples",
            "Share of the samples that move, by VBench's rule on optical flow, beside the truth's. Far below: the model copies frames.",
            "percentunit",
            (shown("sample_dynamic_degree_ratio"), "{{run}} {{video}}"),
            width=8,
        ),
        lines(
            "Loss by bucket",
            "Training loss of the stage's own bucket, and of earlier stages' where they are mixed in.",
            "none",
            (shown("source_loss"), "{{run}} {{source}}"),
            width=8,
        ),
    ),
)

PERFORMANCE = Board(
    "performance",
    "Performance",
    (
        lines(
            "Tokens per second",
            "Latent tokens, and those of them that carried loss. Waits, commits and restarts are in it.",
            "short",
            (rate("tokens_total"), "{{run}} tokens"),
            (rate("supervised_tokens_total"), "{{run}} supervised"),
        ),
        lines(
            "Model FLOPs utilisation",
            "FLOPs that the objective needs against the devices' peak. 0 where the peak is not known, as on CPU.",
            "percentunit",
            (shown("model_flops_utilization_ratio"), "{{run}}"),
        ),
        lines(
            "Where the step goes",
            "Mean over the ranks: forward, the rest of the step (backward, update, waiting for peers), waiting for data.",
            "s",
            (f"avg {by()} ({FORWARD})", "{{run}} forward"),
            (f"avg {by()} ({shown('rank_step_seconds')}) - avg {by()} ({FORWARD})", "{{run}} backward, update, peers"),
            (f"avg {by()} ({shown('rank_data_wait_seconds')})", "{{run}} data"),
            kind="stack",
        ),
        lines("Steps per second", "Recomputed ones included.", "short", (rate("steps_total"), "{{run}}")),
        lines(
            "Forward by rank",
            "A rank's own speed, before it waits for its peers: a slow device stands out here.",
            "s",
            (FORWARD, "{{run}} rank {{rank}}"),
        ),
        lines(
            "Stragglers",
            "Slowest rank against the median: 1 is even. All ranks wait for the slowest one.",
            "none",
            (f"max {by()} ({FORWARD}) / quantile {by()} (0.5, {FORWARD})", "{{run}}"),
        ),
        lines(
            "Waiting for the slowest rank",
            "What the mean rank waits in each step's forward part alone: a lower bound of the time lost to communication.",
            "s",
            (f"max {by()} ({FORWARD}) - avg {by()} ({FORWARD})", "{{run}}"),
            width=8,
        ),
        lines(
            "Step by rank",
            "Forward, backward, update, waiting for peers.",
            "s",
            (shown("rank_step_seconds"), "{{run}} rank {{rank}}"),
            width=8,
        ),
        lines(
            "Data wait by rank",
            "What the last step waited for its batch.",
            "s",
            (shown("rank_data_wait_seconds"), "{{run}} rank {{rank}}"),
            width=8,
        ),
        lines(
            "Gradient reduction by rank",
            "Adding up the gradients over the ranks, waiting for slower peers included: the rank with the least of it is the one that all "
            "wait for. Not with ZeRO 3, which reduces beside the backward pass.",
            "s",
            (shown("rank_reduction_seconds"), "{{run}} rank {{rank}}"),
            width=8,
        ),
        lines(
            "Memory by rank",
            "Peak of the device, or of the process on CPU.",
            "bytes",
            (shown("rank_memory_bytes"), "{{run}} rank {{rank}}"),
            width=8,
        ),
        lines(
            "Kernels compiled",
            "Attention kernels of this generation: more than one per bucket and rule means that shapes change. 0 on CPU.",
            "none",
            (shown("attention_recompiles"), "{{run}}"),
            width=8,
        ),
    ),
)

CURRICULUM = Board(
    "curriculum",
    "Curriculum and elasticity",
    (
        lines("Stages", "Which stage trains, over time.", "none", (shown("run_stage"), "{{run}}"), kind="steps", width=8),
        lines(
            "Readiness of the stages",
            "Share of a stage's videos that are encoded; a stage needs data.start_fraction of them before it starts.",
            "percentunit",
            (shown("stage_readiness_ratio"), "{{run}} {{stage}}"),
            width=8,
        ),
        lines(
            "Time until a stage's data is whole",
            "At the present rate of encoding; 0 when it is. Above Time to go of the stage before it, training will wait.",
            "s",
            (shown("stage_ready_seconds"), "{{run}} {{stage}}"),
            width=8,
        ),
        lines(
            "World size",
            "Processes that train. A step in the line is a resize.",
            "none",
            (WORLD, "{{run}} training"),
            (shown("run_seats"), "{{run}} seats"),
            kind="steps",
        ),
        lines(
            "Failures",
            "Generations that ended before their stage, in all, by cause: a hang, out of memory, the network, the data, a node and so on.",
            "none",
            (shown("failures_total"), "{{run}} {{cause}}"),
            kind="steps",
        ),
        lines(
            "Goodput",
            "Share of the wall time that went into steps that count: of the last minutes, and since the run began.",
            "percentunit",
            (GOODPUT, "{{run}} now"),
            (shown("goodput_ratio"), "{{run}} since it began"),
            width=8,
        ),
        lines(
            "Lost time",
            "Wall time in no step that counts, since the run began, by what it was lost to. detect: noticing a failure; start, load: a "
            "generation's; recompute: steps thrown away; replan: from the end of a generation to the next one's start.",
            "s",
            (shown("lost_seconds"), "{{run}} {{loss}}"),
            kind="stack",
            width=8,
        ),
        lines(
            "Where the time goes",
            "Share of the wall time by activity. start: a generation's, up to its first step; recompute: steps lost since the last commit.",
            "percentunit",
            (f"sum {by('activity')} ({rate('time_seconds_total')}) / on (run, namespace) group_left {SPENT}", "{{run}} {{activity}}"),
            kind="stack",
            width=8,
        ),
        lines("Age of the last commit", "What a failure would lose now.", "s", (AGE, "{{run}}"), width=8),
        lines("Size of a commit", "All ranks' files of the last commit.", "bytes", (shown("commit_bytes"), "{{run}}"), width=8),
        lines("Seconds per commit", "From the first byte to the marker.", "s", (shown("commit_seconds"), "{{run}}"), width=8),
        lines(
            "Commits and promotions",
            "In all.",
            "none",
            (shown("commits_total"), "{{run}} commits"),
            (shown("promotions_total"), "{{run}} promotions"),
            kind="steps",
            width=8,
        ),
        lines(
            "Recomputed steps",
            "Steps behind a commit that were computed again, in all.",
            "none",
            (shown("recomputed_steps_total"), "{{run}}"),
            kind="steps",
            width=8,
        ),
        lines("Generations", "Process groups started, in all.", "none", (shown("generations_total"), "{{run}}"), kind="steps", width=8),
    ),
)
