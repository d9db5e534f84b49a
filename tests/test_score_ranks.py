"""`sstoken-score` in several processes: they share the work, and what one has done is not done again."""

import re

import pytest
from conftest import write
from material import run_command

SAMPLES = 24
# Runs the command; rank 1 is gone, as if killed, when it comes to its third batch.
DYING = """
import os, sys
from sstoken_plugin.history import scoring
padded, batches = scoring.padded, []
def dying(samples):
    batches.append(samples)
    if os.environ["RANK"] == "1" and len(batches) == 3:
        os._exit(9)
    return padded(samples)
scoring.padded = dying
from sstoken_plugin.axolotl.cli import score_command
if __name__ == "__main__":
    score_command(sys.argv[1:])
"""


@pytest.fixture
def score(config, tmp_path):
    """Run the command over ranks, a batch for each sample; return the samples that were there, and what was printed."""
    file = write(config, tmp_path)
    dying = tmp_path / "dying.py"
    dying.write_text(DYING)

    def run(ranks, *, dies=False):
        command = [str(dying)] if dies else ["-m", "sstoken_plugin", "sstoken-score"]
        result = run_command(
            "torchrun", "--standalone", "--nproc_per_node", str(ranks), *command, str(file), "--batch-tokens", "1",
            check=not dies, ACCELERATE_USE_CPU="true",
        )  # fmt: skip
        assert (result.returncode != 0) == dies
        (found,) = re.findall(rf"{SAMPLES} samples, (\d+) of them in", result.stdout)
        return int(found), result.stdout

    return run


def test_ranks_share_the_work_and_one_that_dies_loses_its_open_batch_alone(score):
    score(2, dies=True)
    there, printed = score(3)
    # Two samples of the rank that died, and whatever the other had done by then.
    assert 2 <= there <= 2 + SAMPLES // 2
    own, whole = map(int, re.search(r"(\d+) tokens of (\d+), this process's part,", printed).groups())
    assert 0.2 < own / whole < 0.5
    assert score(1)[0] == SAMPLES
