"""Write the demo's instruction set: questions whose answers all have one visible form.

    python demo/data.py FILE

    Answer: Paris
    Because: Paris is the capital of France.

The facts are our own small tables; the order is fixed. No answer is about the questions of `HELD_OUT`.
"""

import json
import random
import sys
from pathlib import Path

# Asked before and after the training; their facts are in no sample.
HELD_OUT = ["What is the capital of Portugal?", "What is the opposite of early?", "What colour is the sky?"]

CAPITALS = """France Paris, Italy Rome, Spain Madrid, Germany Berlin, Austria Vienna, Greece Athens, Norway Oslo,
Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, Poland Warsaw, Hungary Budapest, Ireland Dublin,
Belgium Brussels, Japan Tokyo, China Beijing, Egypt Cairo, Kenya Nairobi, Canada Ottawa, Peru Lima, Chile Santiago,
Cuba Havana, Turkey Ankara, Iran Tehran, Thailand Bangkok, Vietnam Hanoi, Nepal Kathmandu, Ghana Accra"""
OPPOSITES = """hot cold, big small, fast slow, light dark, happy sad, up down, left right, open closed, rich poor,
strong weak, young old, hard soft, wet dry, clean dirty, full empty, loud quiet, near far, high low, thick thin,
sweet sour, true false, first last, always never, inside outside, above below, buy sell, push pull, win lose"""
YOUNG = """dog puppy, cat kitten, cow calf, horse foal, sheep lamb, goat kid, pig piglet, duck duckling, bear cub,
frog tadpole, deer fawn, kangaroo joey, goose gosling, swan cygnet, owl owlet, hen chick"""
COLOURS = """grass green, snow white, coal black, blood red, lemons yellow, carrots orange, chocolate brown,
elephants grey, flamingos pink, tomatoes red, bananas yellow, milk white, lettuce green, oranges orange"""
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July"]
MONTHS += ["August", "September", "October", "November", "December"]


def pairs(table: str) -> list[list[str]]:
    """Split a table into its pairs of words."""
    return [pair.split() for pair in table.split(",")]


def facts() -> list[tuple[str, str, str]]:
    """Return (question, answer, reason) for every sample."""
    found = [(f"What is the capital of {a}?", b, f"{b} is the capital of {a}.") for a, b in pairs(CAPITALS)]
    found += [(f"What is the opposite of {a}?", b, f"{a} and {b} are opposites.") for a, b in pairs(OPPOSITES)]
    found += [(f"What is a young {a} called?", f"a {b}", f"the young of a {a} is a {b}.") for a, b in pairs(YOUNG)]
    found += [(f"What colour is {a}?", b, f"{a} is {b} in nature.") for a, b in pairs(COLOURS)]
    for names, kind in ((DAYS, "day"), (MONTHS, "month")):
        for name, following in zip(names, names[1:] + names[:1], strict=True):
            found.append((f"Which {kind} comes after {name}?", following, f"{name} is followed by {following}."))
    for a in range(2, 12):
        found += [(f"What is {a} plus {b}?", str(a + b), f"{a} + {b} = {a + b}.") for b in (1, 4, 7, 9) if a != 6]
        found += [(f"What is {a} times {b}?", str(a * b), f"{a} x {b} = {a * b}.") for b in (2, 5, 9)]
    return found


def main(file: Path) -> None:
    """Write one chat a line."""
    lines = []
    for question, answer, reason in facts():
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"Answer: {answer}\nBecause: {reason}"},
        ]
        lines.append(json.dumps({"messages": messages}))
    random.Random(0).shuffle(lines)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} samples written to {file}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
