"""`make demo`: what multiway does, in three minutes, on a real photograph and real English text.

Everything that it prints was computed a moment before. All weights are random.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from rich.console import Console
from rich.rule import Rule
from rich.syntax import Syntax

import multiway as mw
from multiway.cards import limits
from multiway.commands.show import table
from multiway.compiler.analysis.costs import costs, default_sizes
from multiway.compiler.pipeline import Options, Stages
from multiway.compiler.views.report import report, summary
from multiway.compiler.views.text import to_text
from multiway.runtime.generation.greedy import greedy
from multiway.runtime.tasks.predict import Example, Predictor
from multiway.runtime.tasks.tokenizer import Bytes

OUT = Path("demo-output")
AUTHORED = """\
multiway: 1
name: my-decoder
dims: {depth: 6, width: 192, num_heads: 6, vocab: 256, context: 512}
inputs: {tokens: {modality: text, vocab: vocab, context: context}}
block:
  norm: {kind: rms_norm, eps: 1e-6}
  attention: {heads: num_heads, mask: causal, position: rotary}
  ffn: {hidden: "round_up(8 * width / 3, 64)", activation: silu, gate: true}
wiring: mudd            # every block reads all earlier ones, apart for q, k, v and residual
output: {norm: rms_norm}
heads: {lm: {kind: causal_lm}}
"""
NEW_TOKENS = 12
QUESTION = "What stands beside the water?"
CAPTIONS = ("a pavilion beside a lake", "a bowl of noodle soup")
PYTHIA_160M = {
    "multiway": 1,
    "extends": "mudd-pythia",
    "name": "mudd-pythia-160m",
    "dims": {"depth": 12, "width": 768, "num_heads": 12},
}

console = Console(width=110, highlight=False)


@contextmanager
def part(title: str, summary: list[str]) -> Iterator[None]:
    """A section with its heading; its time goes into the summary."""
    console.print(Rule(title, align="left"))
    start = time.perf_counter()
    yield
    summary.append(f"{title}: {time.perf_counter() - start:.1f} s")
    console.print()


def main() -> None:
    OUT.mkdir(exist_ok=True)
    summary: list[str] = []
    with part("1. An author writes a spec, checks it, sees its graph and its cost", summary):
        path = author()
    with part("2. A mistake, as an author sees it", summary):
        mistake(path)
    photo = photograph()
    with part("3. Predict: BEiT-3 base answers a question about a photograph", summary):
        answer(photo)
    with part("4. Predict: BEiT-3 base compares the photograph with two captions", summary):
        retrieve(photo)
    with part(
        "5. Generate: a MUDD-Pythia of about 160M parameters reads English and writes on", summary
    ):
        write_on()
    console.print(Rule("Summary", align="left"))
    for line in summary:
        console.print(f"  {line}")
    console.print("  All weights above are random: the outputs show that every model runs from its")
    console.print("  spec, and mean nothing else. `multiway import` reads released checkpoints.")
    console.print(f"  Files: {OUT}/my-decoder.yaml, {OUT}/my-decoder.svg, {OUT}/photograph.png")


def author() -> Path:
    """Writes the spec, checks it, prints graph and costs, draws it, compiles it, takes a step."""
    path = OUT / "my-decoder.yaml"
    path.write_text(AUTHORED, encoding="utf-8")
    console.print(Syntax(AUTHORED, "yaml", background_color="default"))
    spec = mw.load(path)
    console.print(f"$ multiway check {path}\nok  {spec.name}: {spec.depth} blocks\n")
    graph = mw.build(spec)
    shown(f"$ multiway graph {path}", clipped(to_text(graph), 40))
    sizes = default_sizes(graph, limits(spec.for_head()), batch=1, length=None)
    shown(f"$ multiway show {path}", table(spec.for_head(), graph.name, sizes, costs(graph, sizes)))
    draw(path)
    model = mw.compile(spec)
    tokens = english(model.spec, 128)
    loss, _ = model.loss(tokens=tokens[:, :-1], labels=tokens[:, 1:])
    loss.backward()
    shown("$ python", f"loss on 128 bytes of English, random weights: {loss.item():.3f}")
    shown("the code of block 1, as compiled", clipped(block_code(model), 14))
    return path


def draw(path: Path) -> None:
    from multiway.compiler.views.picture import to_svg

    picture = path.with_suffix(".svg")
    picture.write_text(to_svg(mw.build(path)), encoding="utf-8")
    console.print(f"$ multiway graph {path} --format svg -o {picture}\n")


def block_code(model: mw.Model) -> str:
    from multiway.compiler.views.python import readable
    from multiway.runtime.block import calls_of

    return readable(dict(calls_of(model.programs["forward"]))["blocks.1"])


def mistake(path: Path) -> None:
    """The same spec with a misspelt key and a width that does not divide."""
    wrong = path.with_name("mistake.yaml")
    text = AUTHORED.replace("activation: silu", "activaton: silu").replace(
        "wiring: mudd ", "wiring: mud "
    )
    for changed in (text, AUTHORED.replace("num_heads: 6", "num_heads: 7")):
        wrong.write_text(changed, encoding="utf-8")
        try:
            mw.load(wrong)
        except mw.MultiwayError as error:
            shown(f"$ multiway check {wrong}", error.render())
    wrong.unlink()


def photograph() -> Path:
    """A photograph that comes with scikit-learn, as a file."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    path = OUT / "photograph.png"
    Image.fromarray(load_sample_image("china.jpg")).save(path)
    return path


def answer(photo: Path) -> None:
    model = compiled("beit3-base", "vqa")
    start = time.perf_counter()
    result = Predictor(model)(Example(images=(photo,), text=QUESTION))
    spent = time.perf_counter() - start
    shown(
        f'$ multiway predict beit3-base --head vqa --image {photo} --text "{QUESTION}"',
        "\n".join(f"answer {row['id']}: {row['probability']}" for row in result["classes"])
        + f"\nread, preprocessed and answered in {spent:.2f} s",
    )


def retrieve(photo: Path) -> None:
    predictor = Predictor(compiled("beit3-base", "retrieval"))
    picture = predictor.embed(Example(images=(photo,)))["image"]
    for caption in CAPTIONS:
        words = predictor.embed(Example(text=caption))["text"]
        console.print(f"similarity with {caption!r}: {float(picture @ words):+.4f}")


def write_on() -> None:
    model = compiled(PYTHIA_160M, "lm")
    tokens = english(model.spec, 96)
    start = time.perf_counter()
    (new,) = greedy(model, [tokens[0].tolist()], tokens=NEW_TOKENS)
    spent = time.perf_counter() - start
    shown("$ multiway generate", f"prompt: {bytes(tokens[0].tolist()).decode()!r}")
    console.print(f"{NEW_TOKENS} greedy tokens through the cache in {spent:.2f} s: {new}")


def compiled(source: str | dict[str, Any], head: str) -> mw.Model:
    """A model with random weights and all its programs, and a line on what it is."""
    start = time.perf_counter()
    model = mw.compile(source, head=head)
    for program in model.programs:
        model.programs[program]
    total = sum(p.numel() for p in model.parameters())
    spent = time.perf_counter() - start
    stages = Stages(model.spec, Options())
    for program in model.programs:
        told = summary(report(stages[program], limits=limits(model.spec)))
        console.print(f"program {program}: {told}")
    console.print(f"compiled with {total:,} random weights in {spent:.1f} s\n")
    return model


def english(spec: mw.Spec, count: int) -> torch.Tensor:
    """Bytes [1, count] of Python's own documentation of its statements."""
    text = " ".join(topics["if"].split())
    return torch.tensor([Bytes(spec.inputs["tokens"], end=False).encode(text)[:count]])


def clipped(text: str, lines: int) -> str:
    rows = text.splitlines()
    more = [f"... {len(rows) - lines} more lines"] if len(rows) > lines else []
    return "\n".join([row[:106] for row in rows[:lines]] + more)


def shown(title: str, text: str) -> None:
    console.print(title, style="bold", markup=False)
    console.print(text, markup=False)
    console.print()


if __name__ == "__main__":
    try:
        main()
    except ImportError as error:
        sys.exit(f"the demo needs {error.name}: pip install 'multiway[demo]'")
