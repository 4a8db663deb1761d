"""multiway bench: what it measures beside what, what it writes, and what it refuses."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import multiway as mw
from multiway import cli

SMALL = ("--pairs", 9, "--length", 8, "--batch", 2, "--threads", 1)


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """--threads holds for the process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(monkeypatch: Any, capsys: Any) -> Callable[..., Ran]:
    """Runs the command in this process, as its entry point does."""

    def call(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["multiway", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Ran(code, *capsys.readouterr())

    return call


def names(result: dict[str, Any]) -> list[str]:
    return [side["name"] for side in result["sides"]]


SIDE = {
    "name": str,
    "program": str,
    "median_s": float,
    "spread": float,
    "seconds": list,
    "ratio": (float, type(None)),
    "paired_ratio": (float, type(None)),
    "tokens": int,
    "tokens_per_s": float,
    "peak_live_bytes": (int, type(None)),
    "compile_s": (float, type(None)),
    "parameters": (int, type(None)),
    "gemm_flops": (float, type(None)),
    "gemm_calls": (dict, type(None)),
    "spec": str,
}
RESULT = {
    "multiway_bench": int,
    "head": str,
    "mode": str,
    "compiled_for": str,
    "dtype": str,
    "batch": int,
    "length": (int, type(None)),
    "pairs": int,
    "floor_ratio": float,
    "gemm_flops": float,
    "sides": list,
    "machine": dict,
    "versions": dict,
    "allocator": dict,
    "commit": (dict, type(None)),
}


def check(value: dict[str, Any], form: dict[str, Any]) -> None:
    """Exactly these keys, of these types."""
    assert list(value) == list(form)
    for name, types in form.items():
        assert isinstance(value[name], types), name


def test_json_is_one_document_of_a_stated_form(run: Any) -> None:
    found = run("bench", "mudd-pythia-test", "--against", "pythia-test", "--json", *SMALL)
    assert found.code == 0, found.err
    result = json.loads(found.out)
    check(result, RESULT)
    for side in result["sides"]:
        check(side, SIDE)
        assert len(side["seconds"]) == 9
        assert side["tokens"] == 16
    assert names(result) == ["mudd-pythia-test", "pythia-test", "gemm of mudd-pythia-test"]
    assert (result["head"], result["mode"], result["pairs"]) == ("lm", "forward", 9)
    assert result["compiled_for"] == "train"
    assert result["sides"][0]["ratio"] is None
    model = mw.compile("mudd-pythia-test", device="meta")
    assert result["sides"][0]["parameters"] == sum(p.numel() for p in model.parameters())
    assert mw.load("mudd-pythia-test").text() == result["sides"][0]["spec"]
    assert result["machine"]["threads"] == 1
    assert "transformers" not in result["versions"]
    assert set(result["allocator"]) == {"library", "settings", "reason"}


def test_the_table_has_a_line_for_each_side(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    sides = ("--against", "no-fuse", "--against", "gemm", "--memory")
    found = run("bench", "pythia-test", *sides, *SMALL, "-o", out)
    assert found.code == 0, found.err
    lines = found.out.splitlines()
    assert lines[0].split() == [
        *("forward,", "float32", "time", "ratio", "in", "pairs"),
        *("spread", "tokens/s", "peak", "compile"),
    ]
    assert [line.split("  ")[0] for line in lines[1:4]] == [
        "pythia-test",
        "no-fuse",
        "gemm of pythia-test",
    ]
    legend = "ratio: the time of pythia-test over that of the line"
    assert lines[-1] == f"{legend}; 16 tokens a step, 9 pairs, threads: 1"
    written = json.loads(out.read_text())
    assert all(side["peak_live_bytes"] > 0 for side in written["sides"][:2])
    assert f"wrote {out}" in found.err


@pytest.mark.parametrize(
    ("arguments", "tokens"),
    [
        (("pythia-test", "--train"), 16),
        (("beit3-test", "--head", "vqa", "--train"), 2 * (17 + 8)),
        (("beit3-test", "--head", "features", "--dtype", "bfloat16"), 2 * (17 + 8)),
        (("mudd-pythia-test", "--set", "depth=2"), 16),
    ],
)
def test_heads_types_and_modes(run: Any, arguments: tuple[str, ...], tokens: int) -> None:
    found = run("bench", *arguments, "--json", *SMALL)
    assert found.code == 0, found.err
    result = json.loads(found.out)
    first = result["sides"][0]
    assert first["tokens"] == tokens
    assert first["program"] == ("loss" if "--train" in arguments else "forward")
    assert result["gemm_flops"] > 0


def test_transformers_beside_a_spec(run: Any) -> None:
    pytest.importorskip("transformers")
    found = run("bench", "pythia-test", "--against", "hf", "--train", "--json", *SMALL)
    assert found.code == 0, found.err
    result = json.loads(found.out)
    ours, theirs = result["sides"][:2]
    assert theirs["name"] == "hf"
    assert theirs["parameters"] == ours["parameters"]
    assert result["versions"]["transformers"]


def test_a_spec_may_be_compared_with_itself(run: Any) -> None:
    found = run("bench", "pythia-test", "--against", "pythia-test", "--json", *SMALL)
    assert names(json.loads(found.out))[:2] == ["pythia-test", "pythia-test (2)"]


def test_transformers_may_be_absent(run: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    found = run("bench", "pythia-test", "--against", "hf", *SMALL)
    assert found.code == 2
    assert found.err == (
        "--against hf: error[missing-package]: a comparison with transformers needs the "
        "transformers package\n"
        "  expected: pip install transformers\n"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ("mudd-pythia-test", "--against", "hf"),
            "--against hf: error[not-neox]: mudd-pythia-test is no plain GPT-NeoX: "
            "wiring mudd; blocks that differ; norms of query and key\n"
            "  expected: a spec like those of the family pythia\n",
        ),
        (
            ("pythia-test", "--against", "no-fuze"),
            "--against: error[unknown-spec]: 'no-fuze' is no spec\n"
            "  expected: a zoo name, a path, or one of no-fuse, hf, gemm\n"
            "  nearest:  no-fuse\n",
        ),
        (
            ("pythia-test", "--against", "hf", "--against", "hf"),
            "--against: error[usage]: 'hf' is named twice\n",
        ),
        (
            ("pythia-test", "--length", "65"),
            "--length: error[too-long]: 'tokens' has positions for 64 tokens, not for 65\n"
            "  expected: at most 64\n",
        ),
        (
            ("beit3-test", "--head", "features", "--train"),
            "--train: error[unknown-program]: head 'features' has no loss to train\n"
            "  expected: a head with a program 'loss', or no --train\n",
        ),
        (
            ("pythia-test", "--train", "--mode", "inference"),
            "--train: error[usage]: an inference program takes no gradients\n"
            "  expected: --mode train, or no --train\n",
        ),
    ],
)
def test_mistakes_are_told_and_exit_2(run: Any, arguments: tuple[str, ...], text: str) -> None:
    found = run("bench", *arguments, "--pairs", 9)
    assert found.code == 2
    assert found.err == text
    assert found.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("pythia-test", "--pairs", "8"),
        ("pythia-test", "--batch", "0"),
        ("pythia-test", "--threads", "0"),
        ("pythia-test", "--dtype", "float16"),
        ("pythia-test", "--against", "mudd-pythia-tset"),
        ("beit3-test",),
        ("pythia-test", "--against", "beit3-test"),
        ("pythia-test", "--set", "depht=3"),
        ("pythia-test", "--against", "beit3-test", "--head", "vqa"),
    ],
)
def test_wrong_arguments_exit_2(run: Any, arguments: tuple[str, ...]) -> None:
    found = run("bench", *arguments)
    assert found.code == 2
    assert found.out == ""
    assert "Traceback" not in found.err


def test_a_file_that_cannot_be_written_is_an_error(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "no" / "such.json"
    found = run("bench", "pythia-test", "-o", out, *SMALL)
    assert found.code == 2
    assert found.err == f"{out}: error[unwritable]: there is no folder {out.parent}\n", "at once"


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom multiway import cli\nsys.argv = ['multiway', 'bench', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--against" in done.stdout


def test_programs_for_inference(run: Any) -> None:
    found = run("bench", "pythia-test", "--mode", "inference", "--against", "no-fuse", *SMALL)
    assert found.code == 0, found.err
    assert found.out.startswith("forward, float32, for inference  ")
