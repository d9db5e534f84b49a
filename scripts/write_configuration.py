"""Write docs/configuration.md from the config class; with --check, fail where it is out of date."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from sstoken_plugin.selection.config import CHANGING, SSTokenConfig  # noqa: E402
from sstoken_plugin.training.metrics import MEANINGS  # noqa: E402

HEAD = """# Configuration

This page is written by `python scripts/write_configuration.py` from `sstoken_plugin/selection/config.py`.

```yaml
plugins:
  - sstoken
sstoken:
{block}
```

Every key is optional. An unknown key, a wrong type or a value out of bounds stops the run before a model is loaded.
On the command line: `accelerate launch -m axolotl.cli.train config.yaml --sstoken.ratio=0.4`; `axolotl train` takes
no such overrides ([limits.md](limits.md#overrides-and-licences)). `seed` and `warmup_ratio` at top level are keys of
Axolotl's, for the run and its learning rate: they are accepted there, so that a forgotten indentation is not noticed;
but where learning rate and selection both have a warm-up, the log says in steps which is which.

The keys and their meaning are the same in every trainer, the place where they are written is not:
[trainers.md](trainers.md). Other keys that these pages name (`sample_packing`, `val_set_size`, ...) are Axolotl's.

REL is h - c, the loss of a token under the history minus its loss now: what the model has gained on it. Prompt
attention is how much of a token's attention falls on the prompt. More: [how-it-works.md](how-it-works.md). What each
`history` is, what it costs and how the cache works: [histories.md](histories.md).

| key | type | default | meaning |
| --- | --- | --- | --- |
{rows}

## Logged metrics

In every training log line (console, `trainer_state.json` and [trackers](report.md#in-a-tracker)), over all tokens
since the last line, over all ranks. A metric that has nothing to measure (no token was dropped, say) is left out, and
so is `sstoken/not_finite` where it is 0.

**Signals by which nothing ranks are measured on samples**: REL in the warm-up, attention under `selector: rel`, both in
a control. One micro-batch in 20 is a sample, evenly spread over the run, at least one. Samples cost less than 2 % of
the time of a run of 20 micro-batches or more, unless the history is a larger model. `rel_mean`, `attention_mean`,
`signal_overlap` and `history_cache_hits` of such steps stand in the log lines whose steps have a sample, and are means
over the samples. Samples without a prompt have no attention: REL is measured for them wherever attention ranks.

| name | meaning |
| --- | --- |
{metrics}

## `axolotl sstoken-score CONFIG [--batch-tokens N] [--sstoken.KEY=VALUE ...]`

Computes the losses of the history for the whole data set, in batches of N tokens (default 16384), and keeps them in
`history_cache`. It shows its progress and the tokens a second, can be interrupted at any time, and goes on where it
stopped. With `history_cache: auto` that is the run's own folder, which training then uses, one epoch or several. See
[histories.md](histories.md). A key of Axolotl's is overridden likewise (`--val-set-size=0`).

`accelerate launch -m sstoken_plugin sstoken-score CONFIG` shares the work between the processes that it starts, on
several machines too if `history_cache` is a folder that all of them see. Each writes a batch as soon as it is computed;
a process that dies loses that batch alone, and a second launch goes on, with as many processes as you like. The first
one shows the progress of its own part. There is no such command under Ray: Axolotl hands its trainings to Ray, and no
others.

Started alone, this command and the next one run in one process. On a machine with several GPUs give it one
(`CUDA_VISIBLE_DEVICES=0`): else Axolotl spreads a model's layers over all of them, which is refused.

## `axolotl sstoken-inspect CONFIG [--after N] [--adapter DIR ...] [--samples N] [--show N] [--out DIR]`

Scores the first N samples (default 20) of the prepared data set, with the settings after the warm-up. Settings are
overridden as by `sstoken-score`. Prints [the plan of the run](#the-plan-of-a-run) and the first samples (`--show`,
default 3; in colour, or with signs around kept and dropped tokens where a terminal has no colours or `NO_COLOR` is set)
and writes `inspect.html` and `selections.jsonl` to DIR (default `OUTPUT_DIR/sstoken`; in a folder of your own that
holds no page of a training, the page is there as `report.html` too, its name in version 0.1). A folder that cannot be
written is refused before anything is loaded. Files come first, so that nothing that happens to a terminal costs one;
characters that it does not have are shown as `?`. An option that neither this command nor Axolotl knows is refused.

**Which model.** REL needs one that has learned something:

| | model | what it shows | time |
| --- | --- | --- | --- |
| | as it is before training | prompt attention alone: REL is zero, unless `history` is a path | a forward pass |
| `--after N` | after the first N steps of the run | what the run would select then | N steps, and it says so |
| `--adapter DIR` | with a trained adapter | what that training selects at its end | a forward pass |

Where REL is zero at every token and would rank, the terminal and the page say so.

`--after` trains by the YAML itself: Axolotl's own trainer, with the run's learning rates, batches and both warm-ups,
and the history that the run has, whatever it is. So in the first steps the selection is that of `warmup_selector`, and
only the scoring after them ranks by REL. It evaluates, saves and uploads nothing, writes to a temporary folder that it
removes, and tells no tracker; a folder that you name as `history_cache` is used and filled as in the run. It trains in
one process: `deepspeed`, `fsdp_config` and `use_ray` are refused.

How many steps? One run of the demo (SmolLM2-135M, LoRA, 22 steps of 8 samples; 30 samples scored; `python
benchmarks/first_steps.py example_configs/cpu-demo.yaml`, which sets `warmup_selector: attention`), where of the tokens
that are kept after N steps or at the end this share is kept both times:

| N | 1 | 2 | 3 | 5 | 8 | 10 | 15 | 20 |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| kept both times | 0.61 | 0.73 | 0.79 | 0.87 | 0.90 | 0.91 | 0.99 | 1.00 |
| mean of REL without its sign, nats | 0.00 | 0.36 | 0.98 | 2.05 | 2.85 | 3.06 | 3.10 | 3.08 |

It was measured with `warmup_selector: attention`; how soon a run with the default, `all`, comes to its choice was not.
After one step, at the start of the learning rate's warm-up, the choice is still that of attention alone. This run is
short and its learning rate high (0.001); where REL stays small, take more steps. They took 738 s, samples included, on
two cores that other work had too; alone the demo trains in about two minutes.

`--adapter` needs `adapter: lora` or `qlora` in the YAML, and does not go with `--after`. With two adapters it compares
them: the page has a slider from one to the other, the terminal shows both and how far
they agree, and the second's samples are in `selections-2.jsonl`.

**What is printed.** On standard output what is said here and nothing else, so that it can be piped. What is going on is
said on standard error, and the plugin's warnings are. What Axolotl and others print goes to `inspect.log` beside the
page; after an error that is no sentence of the plugin's, its last lines are shown. Progress bars stay where standard
error is a terminal. `debug.log` in OUTPUT_DIR, which Axolotl begins anew with each of its commands, is left alone.

With a `history` that follows the training ({changing}) name a checkpoint folder,
`--adapter OUTPUT_DIR/checkpoint-N`: it holds the history, and OUTPUT_DIR does not. After full fine-tuning there is no
adapter to name;
`--base-model=OUTPUT_DIR --sstoken.history=FOLDER`, the folder of the first model, shows the trained model against it,
under the name "untrained model".

A line of `selections.jsonl` is one sample:

| field | content |
| --- | --- |
| `sample` | index in the prepared data set |
| `input_ids`, `tokens` | ids, and the text of each token (a character that several make up is that of the first) |
| `response` | whether the token is a response token |
| `current_nll`, `history_nll` | loss of the token in nats, now and under the history |
| `rel`, `attention`, `score` | the signals; null off the response |
| `selected` | whether the token is kept |
| `labels` | only where your data has labels that are other tokens than `input_ids`: the labels |

Every list has one entry a token. Losses are measured without dropout, unlike those of a training step.

## The plan of a run

The first lines of `axolotl sstoken-inspect`, and one line in the log of every training before its first step:

```
data     24 samples, 288 response tokens (22% of 1,280)
kept     all in the warm-up, then 183 response tokens, 63.5%
steps    4, 0.7 epochs, 1 of them the selection's warm-up
history  initial, no memory; its losses are not kept; a forward pass of it in 76% of the micro-batches
time     1.13 to 1.31 of plain training's steps, by docs/performance.md (cpu, adapter)
```

- **data, kept**: counted from the labels, of every sample that has a response. Of more than 20,000 rows or 20 million
  tokens, rows all over the data set are counted and scaled up ("about"). More than `ratio` is kept where answers are
  short: each sample keeps ceil(ratio * n) of its n response tokens, with `keep_eos` at least twice its ends of turns.
  Under `selector: threshold` no number is known before: it says "what has a probability of 0.01 or more", by
  `min_probability`. A `warmup_selector` that keeps another share than `selector` is named first.
- **steps**: by `sstoken-inspect`, those of one process; with `--after` and in a training, the trainer's own number.
- **history**: what it adds to memory, where its losses are kept and what they take there before compression, and in how
  many micro-batches it is computed: not in the warm-up but for one in 20, not again where losses are kept.
- **time**: of the steps, as a multiple of the same steps without the plugin, by
  [a rule](performance.md#the-rule-of-the-plan) that takes what was measured.

## `axolotl sstoken-report RUN [RUN ...] [--out FILE]`

Draws the page of a finished run again, or one page of several runs
([report.md](report.md#after-training-draw-it-again-and-several-runs-side-by-side)). Without `--out`, which names an
`.html` file, the page of one run is `RUN/sstoken/report-redrawn.html`, and that of several `sstoken-report.html` in the
current folder. It needs neither the data nor the model, and not Axolotl either:
`python -m sstoken_plugin sstoken-report RUN` is the same command wherever the package is installed.
"""


def type_name(annotation: Any) -> str:
    """Return a type as a reader of YAML knows it."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{yaml_value(choice)}`" for choice in get_args(annotation))
    names = {float: "number", int: "integer", str: "text", bool: "`true`, `false`", type(None): "`null`"}
    if get_origin(annotation) is Annotated:
        return type_name(get_args(annotation)[0])
    parts = get_args(annotation)
    return ", ".join(map(type_name, parts)) if parts else names[annotation]


def yaml_value(value: object) -> str:
    """Return a default as YAML."""
    return json.dumps(value).strip('"')


def page() -> str:
    """Return the page."""
    fields = SSTokenConfig.model_fields.items()
    block = "\n".join(f"  {name}: {yaml_value(field.default)}" for name, field in fields)
    rows = "\n".join(
        f"| `{name}` | {type_name(field.annotation)} | `{yaml_value(field.default)}` | {field.description} |"
        for name, field in fields
    )
    metrics = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in MEANINGS.items())
    changing = ", ".join(f"`{name}`" for name in CHANGING)
    return HEAD.format(block=block, rows=rows, metrics=metrics, changing=changing)


if __name__ == "__main__":
    target = ROOT / "docs" / "configuration.md"
    if "--check" in sys.argv:
        sys.exit(f"{target} is out of date: python {__file__}" if target.read_text() != page() else 0)
    target.write_text(page())
