"""The ``rlsys`` command. Ray is imported only by the commands that need it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from actors.commands import evaluation, jobs
from actors.commands import plan as planning
from actors.ending import end_in_order, exit_code
from actors.local import engine_environment, run_local
from rlsys.errors import ConfigError, RlsysError
from rlsys.guard.levels import REFUSAL

app = typer.Typer(
    help="Safety alignment of multimodal LLMs: Safe RLHF-V on Ray, vLLM and DeepSpeed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(jobs.app)
app.add_typer(planning.app)
app.add_typer(evaluation.app)

Recipe = Annotated[Path, typer.Argument(help="A recipe, for example configs/demo.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, dotted: stages.ppo.iterations=5")
]


@app.command()
def run(
    config: Recipe,
    overrides: Overrides = None,
    in_process: Annotated[
        bool, typer.Option(help="All roles in this process, without Ray: for a debugger.")
    ] = False,
    resume: Annotated[
        bool, typer.Option(help="Continue the last run of this name; an error if there is none.")
    ] = False,
    trace: Annotated[
        bool, typer.Option(help="Write what every role did when, as a Chrome trace for Perfetto.")
    ] = False,
) -> None:
    """Run a recipe here, or on the cluster this process was submitted to. A stopped run of the
    same recipe is resumed.
    """
    if in_process:
        engine_environment()
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # of this process; groups set their own
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from rlsys.config.load import load_config
    from rlsys.runtime.trace import DRIVER, record_start

    loaded = load_config(config, overrides or [])
    record_start(DRIVER)
    end_in_order()
    if in_process:
        print(
            "in process: one rank per group, weights through shared memory; the keys ranks, cpus,"
            " gpus and engine.transport do not apply"
        )
        run_local(loaded, resume=resume, trace=trace)
    else:
        from actors.cluster import check_private, open_cluster
        from rlsys.display import Display
        from rlsys.stages.recipe import run_recipe

        check_private(loaded)
        run_recipe(loaded, Display(), open_cluster, resume=resume, trace=trace)


Disentangle = Annotated[
    Path | None,
    typer.Option(help="Folder of a judge, whose verified risks become a hint to the policy."),
]
ModeratePrompts = Annotated[
    bool, typer.Option(help="With a guard: refuse unsafe prompts without sampling.")
]
PromptThreshold = Annotated[
    float, typer.Option(help="Probability from which a prompt counts as unsafe.")
]
SystemPrompt = Annotated[
    str, typer.Option(help="data.system_prompt of the policy's recipe, if it had one.")
]
MaxPixels = Annotated[
    int, typer.Option(help="data.max_pixels of the policy's recipe: larger images are reduced.")
]
JudgePrompts = Annotated[
    str, typer.Option(help="Folder of that judge's prompts, or a built-in world's name.")
]
Dtype = Annotated[
    str, typer.Option(help="float32 or bfloat16, of all models; without it each model's own.")
]


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(help="Folder of a policy.")],
    prompts: Annotated[
        Path | None, typer.Option(help="JSON lines of {question, image, id}; image and id if any.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="One picture, with --question.")] = None,
    question: Annotated[str, typer.Option(help="The question about it, or without one.")] = "",
    system_prompt: SystemPrompt = "",
    max_pixels: MaxPixels = 0,
    disentangle: Disentangle = None,
    judge_prompts: JudgePrompts = "",
    joint: Annotated[bool, typer.Option(help="The judge observes image and text together.")] = True,
    guard: Annotated[Path | None, typer.Option(help="Folder of a guard.")] = None,
    rounds: Annotated[int, typer.Option(help="With a guard: most rounds of regeneration.")] = 5,
    candidates: Annotated[int, typer.Option(help="Answers sampled per prompt and round.")] = 4,
    temperature: float = 1.0,
    hint: Annotated[str, typer.Option(help="Added to the question of regenerated answers.")] = "",
    moderate_prompts: ModeratePrompts = False,
    prompt_threshold: PromptThreshold = 0.5,
    refusal: Annotated[str, typer.Option(help="Answer where none passed the guard.")] = REFUSAL,
    max_new_tokens: int = 64,
    dtype: Dtype = "",
    out: Annotated[Path | None, typer.Option(help="Write JSON lines here.")] = None,
) -> None:
    """Answers of a policy: plain, given a judge's observations, or behind a guard. Needs no Ray."""
    from rlsys.engines.environment import OFFLINE

    engine_environment()
    os.environ.update(OFFLINE)
    import rlsys.generate as generation
    from rlsys.config.check import check_values
    from rlsys.config.schema import DTYPES
    from rlsys.data.worlds import prompts_folder
    from rlsys.judging.prompts import load_prompts
    from rlsys.stages.guarded import GuardedStage

    settings = GuardedStage(
        rounds=rounds, candidates=candidates, temperature=temperature, hint=hint,
        refusal=refusal, max_new_tokens=max_new_tokens, moderate_prompts=moderate_prompts,
        prompt_threshold=prompt_threshold,
    )  # fmt: skip
    check_values("", settings)
    _check_options(
        {
            "give either --prompts FILE, or --question TEXT and maybe --image FILE": (
                bool(prompts) == bool(question or image)
            ),
            "--judge-prompts goes with --disentangle JUDGE": bool(judge_prompts)
            and not disentangle,
            "--hint goes with --guard GUARD": bool(hint) and not guard,
            "--moderate-prompts goes with --guard GUARD": moderate_prompts and not guard,
            "give either --guard or --disentangle": bool(guard and disentangle),
            f"--dtype is {' or '.join(DTYPES)}": dtype not in ("", *DTYPES),
        }
    )
    prompt_set = load_prompts(prompts_folder(judge_prompts))
    advisor = generation.Advisor(str(disentangle), prompt_set, joint) if disentangle else None
    one = [] if prompts else [generation.prompt("prompt", question, image)]
    questions = generation.read_prompts(prompts) if prompts else one
    asked = [replace(each, system=system_prompt, max_pixels=max_pixels) for each in questions]
    answers = generation.generate(str(model), asked, str(guard or ""), settings, advisor, dtype)
    _write(generation.as_json(answers), out)


def _write(lines: str, out: Path | None) -> None:
    """To a file, or to the terminal."""
    if out is None:
        print(lines, end="")
    else:
        out.write_text(lines, encoding="utf-8")
        print(f"{lines.count(chr(10))} answers: {out}")


def _check_options(refusals: dict[str, bool]) -> None:
    """Args: message -> whether it applies. Raises: ConfigError with the first that does."""
    for message, applies in refusals.items():
        if applies:
            raise ConfigError(message)


@app.command()
def validate(
    config: Recipe,
    overrides: Overrides = None,
) -> None:
    """Check a recipe; nothing is run."""
    from rlsys.config.load import load_config

    loaded = load_config(config, overrides or [])
    stages = ", ".join(f"{name} ({stage.kind})" for name, stage in loaded.stages.items())
    print(f"{config}: fine. Stages: {stages}")


@app.command("config")
def print_config(
    kind: Annotated[
        str | None, typer.Argument(help="A kind of stage; without one, every key there is.")
    ] = None,
) -> None:
    """Every key of a recipe: its type, default, range and description."""
    from rich.table import Table

    from rlsys.config import docs

    everything = (*docs.general_tables(), *docs.stage_tables(), *docs.shared_tables())
    for keys in [docs.kind_table(kind)] if kind else everything:
        caption = f"[bold]{escape(keys.title)}[/bold]  {escape(keys.doc)}"
        table = Table(title=caption, title_justify="left", title_style="")
        for column in docs.COLUMNS:
            table.add_column(column, no_wrap=column == "key", overflow="fold")
        for row in keys.rows:
            table.add_row(*map(escape, (row.key, row.type, row.default, row.range, row.doc)))
        Console().print(table)


@app.command()
def data(
    source: Annotated[str, typer.Argument(help="A folder, a file, or a dataset's name on a hub.")],
    layout: Annotated[
        str, typer.Option(help="llava, vlguard, ...; without one recognised by the columns.")
    ] = "",
    config: Annotated[
        list[str] | None, typer.Option(help="A configuration to take; may be repeated.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="A model's folder or name, to count lengths in its tokens.")
    ] = "",
    page: Annotated[Path, typer.Option(help="Write a page of samples here.")] = Path("data.html"),
) -> None:
    """Show what a dataset holds: rows, lengths, images, rejected rows with reasons, and samples."""
    from rlsys.show_data import show_data

    show_data(source, layout, config or [], model, page)


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="A run directory.")]) -> None:
    """Rebuild report.html of a run from its files."""
    from rlsys.report.build import build_report

    print(build_report(run_dir))


def main() -> None:
    """Entry point: a known error is one line and its exit code."""
    try:
        app()
    except RlsysError as error:
        Console(stderr=True).print(
            f"[bold red]{type(error).__name__}[/bold red] {escape(str(error))}",
            highlight=False,
            soft_wrap=True,
        )
        raise SystemExit(exit_code(error)) from None


if __name__ == "__main__":
    main()
