"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

import multiway as mw
from multiway import cli
from multiway.commands.zoo import columns
from multiway.zoo import catalogue

SMALL = """\
multiway: 1
name: small
dims: {depth: 2, width: 16, num_heads: 2, vocab: 256, context: 32}
inputs: {tokens: {modality: text, vocab: vocab, context: context}}
block:
  norm: {kind: rms_norm, eps: 1e-6}
  attention: {heads: num_heads, mask: causal, position: rotary}
  ffn: {hidden: 2 * width}
heads: {lm: {kind: causal_lm}}
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: Any, capsys: Any) -> Callable[..., Ran]:
    """Runs the command in this process, as its entry point does."""

    def call(*arguments: object, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "argv", ["multiway", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Ran(code, *capsys.readouterr())

    return call


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory: Any) -> Path:
    """A photograph, as a file."""
    image = pytest.importorskip("PIL.Image")
    datasets = pytest.importorskip("sklearn.datasets")
    path = tmp_path_factory.mktemp("photo") / "china.jpg"
    image.fromarray(datasets.load_sample_image("china.jpg")).save(path)
    return Path(path)


# check


def test_check_says_what_is_right(run: Any, small: Path) -> None:
    found = run("check", small, "beit3-test")
    assert found.code == 0
    assert "ok  small: 2 blocks of width 16" in found.out
    assert "nlvr2: 163,202 parameters" in found.out
    assert found.err == ""


def test_check_reports_every_spec_and_exits_2(run: Any, small: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(SMALL.replace("hidden: 2", "hiden: 2"))
    found = run("check", wrong, small)
    assert found.code == 2
    assert "ok  small" in found.out
    assert f"{wrong}:8:9: error[unknown-key]: 'hiden' is not a key of ffn" in found.err
    assert "Traceback" not in found.err


def test_check_reads_standard_input(run: Any) -> None:
    assert run("check", "-", stdin=SMALL.encode()).code == 0
    assert run("check", "-", stdin=b"\xff\xfe").code == 2
    assert "too-large" in run("check", "-", stdin=b"#" * (1 << 21)).err


def test_check_json_is_one_document_even_with_errors(run: Any, small: Path) -> None:
    found = run("check", small, "nope", "--json")
    assert found.code == 2
    assert found.err == ""
    good, bad = json.loads(found.out)
    assert good["heads"]["lm"]["programs"] == ["forward", "loss", "prefill", "decode"]
    assert bad["errors"][0]["code"] == "unknown-spec"


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("depht=3", "'depht' is not a dim of this spec"),
        ("block.ffn.hiden=3", "'hiden' is not a key of ffn"),
        ("depth", "'depth' sets nothing"),
        ("depth=0", "depth"),
        ("block..norm=1", "a name is missing here"),
    ],
)
def test_a_wrong_setting_is_named(run: Any, small: Path, setting: str, text: str) -> None:
    found = run("check", small, "--set", setting)
    assert found.code == 2
    assert text in found.err


def test_set_changes_dims_and_paths(run: Any, small: Path) -> None:
    settings = ("--set", "depth=3", "--set", "wiring.use=mudd")
    found = json.loads(run("zoo", "mudd-pythia-test", "--json").out)
    assert found[0]["wiring"] == "mudd"
    assert "3 blocks" in run("check", small, *settings).out


# show, graph, schema, zoo


def test_show_adds_up(run: Any, small: Path) -> None:
    found = json.loads(run("show", small, "--length", 8, "--json").out)
    parts = found["parts"]
    total = parts.pop("total")
    model = mw.compile(small)
    assert total["parameters"] == sum(p.numel() for p in model.parameters())
    assert total["flops"] == sum(part["flops"] for part in parts.values())
    assert found["sizes"] == {"B": 1, "T": 8}
    assert "FLOPs" in run("show", small).out


def test_show_needs_a_head_where_there_are_several(run: Any) -> None:
    found = run("show", "beit3-base")
    assert found.code == 2
    assert "beit3-base has several heads" in found.err


def test_graph_formats(run: Any, small: Path, tmp_path: Path) -> None:
    text = run("graph", small).out
    assert "# blocks.0 to blocks.1: 2 blocks like this one" in text
    assert "blocks.1.attention.query" in run("graph", small, "--unfold").out
    data = json.loads(run("graph", small, "--format", "json").out)
    assert {"nodes", "edges", "directed", "multigraph"} <= data.keys()
    out = tmp_path / "graph.html"
    assert run("graph", small, "--format", "html", "-o", out).code == 0
    assert out.read_text().startswith("<!doctype html>")
    assert run("graph", small, "--format", "svg").out.startswith("<svg")


def test_graph_names_an_unknown_program(run: Any, small: Path) -> None:
    found = run("graph", small, "--program", "decod")
    assert found.code == 2
    assert "nearest:  decode" in found.err


def test_every_picture_unfolds(run: Any, small: Path) -> None:
    for form in ("text", "svg", "html"):
        folded, whole = (
            run("graph", small, "--format", form, "--set", "depth=3", *more).out
            for more in ((), ("--unfold",))
        )
        assert "3 blocks like this one" in folded and "blocks like this one" not in whole
        assert "blocks.2.ffn" in whole and "blocks.2.ffn" not in folded


def test_schema_is_json(run: Any) -> None:
    assert json.loads(run("schema").out)["$schema"].endswith("2020-12/schema")


def test_zoo_filters(run: Any) -> None:
    def names(*arguments: str) -> list[str]:
        return [row["name"] for row in json.loads(run("zoo", *arguments, "--json").out)]

    every = [entry.name for entry in catalogue()]
    assert "beit3-large" in every
    assert names("*-2.8b") == ["mudd-pythia-2.8b", "muddformer-2.8b", "pythia-2.8b"]
    assert names("beit3", "--max-params", "1M") == ["beit3-test", "beit3-moe-test"]
    prepost = ("mudd-prepost-", "mudd-jax-", "mudd-moe-")
    assert set(names("--wiring", "mudd")) == {
        n for n in every if "mudd" in n and not n.startswith(prepost)
    }
    assert names("--head", "vqa_768") == ["beit3-large"]
    assert "hc-12x512" in names("hc-*", "--routing", "none", "--head", "causal_lm")
    assert "mudd-vit-test" not in names("mudd-*", "--head", "causal_lm")
    assert "mixtral-8x7b" in names("m*", "--routing", "top_k")
    assert not any("pythia" in name for name in names("m*", "--routing", "top_k"))
    assert run("zoo", "hc-*", "--head", "nothing").out.strip() == "no entry fits"
    assert run("zoo", "bert").code == 2
    assert run("zoo", "--max-params", "many").code == 2


def test_zoo_show_tells_all_and_diff_what_differs(run: Any, small: Path) -> None:
    found = json.loads(run("zoo", "show", "beit3-base", "--json").out)
    assert found["weights"]["files"]["vqa"] == "beit3_base_patch16_480_vqa.pth"
    assert found["heads"]["imageclassification"]["active_parameters"] == 86_661_352
    assert "Caiyun-AI/MUDDPythia-2.8B" in run("zoo", "show", "mudd-pythia-2.8b").out
    differs = json.loads(run("zoo", "diff", "pythia-1.4b", "mudd-pythia-1.4b", "--json").out)
    assert differs["spec"]["dims.vocab"] == [50304, 50432]
    assert differs["costs"]["parameters"] == [1_414_647_808, 1_419_950_149]
    assert differs["structure"]["mix"] == [0, 24]
    assert "the specs are the same" in run("zoo", "diff", small, small).out
    assert "doc" not in differs["spec"] and "cite" not in differs["spec"]
    text = run("zoo", "diff", "prenorm-12x512", "hc-12x512").out
    assert text.startswith(
        "hc-12x512 against prenorm-12x512: +4 lanes, +0.15 % parameters, +0.88 % FLOPs\n"
    )
    assert "flops_per_token    179M            181M" in text
    for arguments in (("show", "bert"), ("diff", "beit3-base"), ("diff", "beit3-base", "bert")):
        assert run("zoo", *arguments).code == 2
    assert run("zoo", "diff", "beit3-base", "beit3-mudd", "--head", "nope").code == 2


def test_a_table_fits_a_terminal_and_cuts_no_word() -> None:
    names = "imageclassification, nlvr2, vqa, captioning, retrieval"
    rows = [("name", "heads"), ("beit3-base", names), ("pythia-test", "lm")]
    assert columns(rows, 40) == (
        "name         heads\n"
        "beit3-base   imageclassification, nlvr2,\n"
        "             vqa, captioning, retrieval\n"
        "pythia-test  lm"
    )
    assert columns(rows) == (  # a file or a pipe takes all
        f"name         heads\nbeit3-base   {names}\npythia-test  lm"
    )
    assert max(map(len, columns(rows, 10).splitlines())) <= 13 + 20


def test_zoo_show_of_no_entry(run: Any) -> None:
    assert run("zoo", "show").out == run("zoo").out
    names = [row["name"] for row in json.loads(run("zoo", "show", "hc", "--json").out)]
    assert names == ["hc-12x512", "hc-12x768", "hc-24x1024", "hc-24x2048", "hc-test"]
    text = run("zoo", "show", "pythia").out
    assert text.startswith("pythia\n  paper:    arXiv:2304.01373\n  licence:  Apache-2.0\n")
    assert "pythia-12b" in text and "mudd-pythia" not in text
    assert run("zoo", "show", "pythja").err == (
        "zoo: error[unknown-spec]: 'pythja' is not in the zoo\n"
        "  expected: a name that `multiway zoo` lists\n"
        "  nearest:  pythia, pythia-1b, pythia-70m\n"
    )


def test_zoo_shows_where_an_entry_comes_from(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("new", "family", "own")
    found = run("zoo", "show", "own-test").out
    assert f"from:     multiway.toml: {tmp_path / 'families' / 'own'}" in found
    assert "weights:  none released" in found
    (tmp_path / "families" / "own" / "card.yaml").unlink()
    assert "weights:  unknown" in run("zoo", "show", "own-test").out
    assert "from:     multiway\n" in run("zoo", "show", "pythia-test").out


def test_routing_help_names_every_route(run: Any) -> None:
    words = run("zoo", "--help").out.split()
    assert {"none,", "modality,", "top_k,", "expert_choice,", "hash."} <= set(words)


# compile


def test_compile_writes_what_runs(run: Any, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    found = run("compile", small, "-o", out, "--verify")
    assert found.code == 0, found.err
    assert (
        "verified decode: graph, lowered code, model.py; outputs equal"
        in (out / "report.txt").read_text()
    )
    again = mw.load(out / "spec.yaml")
    assert again.dims == mw.load(small).dims
    assert json.loads((out / "graph.loss.json").read_text())["multigraph"]


def test_compile_reports_what_the_passes_did(run: Any, small: Path, tmp_path: Path) -> None:
    found = run("compile", "mudd-pythia-test", "--report")
    assert re.search(r"fused_mix +4 kernel\n", found.out)  # asked with true tensors
    assert found.code == 0, found.err
    loss = found.out.split("program ")[2]
    assert "fuse_loss             1" in loss
    assert "at heads.lm.loss" in loss
    assert "fused_mix              4 " in loss
    budget = ("--memory-budget", "10kB", "--batch", "2", "--length", "8")
    document = json.loads(run("compile", "mudd-pythia-test", "--json", *budget).out)
    assert document["programs"]["loss"]["recompute"] == [f"blocks.{i}" for i in range(4)]
    assert document["programs"]["decode"]["recompute"] == []
    nodes, kept = (document["programs"]["loss"][k] for k in ("recomputed_nodes", "kept_nodes"))
    assert "blocks.0.ffn.activation" in nodes and "blocks.0.hidden" in kept
    assert not set(nodes) & set(kept)
    text = run("compile", "mudd-pythia-test", "--report", *budget).out
    recomputed, others = (
        next(line for line in text.splitlines() if line.strip().startswith(start))
        for start in ("recomputed in backward: ", "kept in these blocks: ")
    )
    assert "blocks.*.ffn.activation (4)" in recomputed
    assert "blocks.*.hidden (4)" in others
    without = json.loads(run("compile", small, "--json", "--without", "fuse_loss").out)
    assert "fuse_loss" not in [each["name"] for each in without["programs"]["loss"]["passes"]]
    assert run("compile", small, "--dump", tmp_path / "dump").code == 0
    files = sorted(path.name for path in (tmp_path / "dump").iterdir() if "loss" in path.name)
    assert files[0] == "loss.00.built.txt"
    assert "linear_cross_entropy" in (tmp_path / "dump" / files[-1]).read_text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "nothing to write and nothing to print"),
        (("--report", "--without", "fuse_mx"), "there is no pass 'fuse_mx'"),
        (("--report", "--allow", "lies"), "'lies' cannot be allowed"),
        (("--report", "--memory-budget", "12parsecs"), "'12parsecs' is no number of bytes"),
    ],
)
def test_compile_refuses_what_it_does_not_know(
    run: Any, small: Path, arguments: tuple[str, ...], text: str
) -> None:
    found = run("compile", small, *arguments)
    assert (found.code, found.out) == (2, "")
    assert text in found.err
    assert "Traceback" not in found.err


def test_a_graph_is_shown_at_every_stage(run: Any) -> None:
    for stage, op in (("built", " mix("), ("fuse_mix", " fused_mix("), ("fused", " linear_sum(")):
        assert op in run("graph", "mudd-pythia-test", "--stage", stage).out
    assert "fold_gain" in run("graph", "pythia-test", "--stage", "fold_norms").out
    found = run("graph", "pythia-test", "--stage", "fuzed")
    assert found.code == 2
    assert "nearest:  fused" in found.err


def test_compile_does_not_overwrite_without_force(run: Any, small: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "precious").write_text("x")
    found = run("compile", small, "-o", tmp_path / "made")
    assert found.code == 2
    assert "this folder is not empty" in found.err
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["precious"]
    assert run("compile", small, "-o", tmp_path / "made", "--force").code == 0
    assert not (tmp_path / "made" / "precious").exists()
    assert run("compile", small, "-o", small).code == 2
    assert small.read_text() == SMALL


def test_a_failed_compile_writes_nothing(run: Any, small: Path, tmp_path: Path) -> None:
    found = run("compile", small, "-o", tmp_path / "made", "--set", "block.attention.heads=3")
    assert found.code == 2
    assert [p.name for p in tmp_path.iterdir()] == ["small.yaml"]


# import and run


def test_import_then_run(run: Any, tmp_path: Path) -> None:
    model = mw.compile("mudd-pythia-test", seed=5)
    own = model.state_dict()
    pairs, _ = mw.rename_table(model.spec).pairs(own)
    save_file({p.theirs: own[p.ours[0]] for p in pairs}, tmp_path / "released.safetensors")
    out = tmp_path / "ours.safetensors"
    found = run("import", tmp_path / "released.safetensors", "mudd-pythia-test", "-o", out)
    assert found.code == 0, found.err
    assert all(torch.equal(value, own[name]) for name, value in load_file(out).items())
    random = json.loads(run("run", "mudd-pythia-test", "--text", "One", "--json").out)
    loaded = run("run", "mudd-pythia-test", "--text", "One", "--weights", out, "--json")
    assert json.loads(loaded.out)["random_weights"] is False
    assert json.loads(loaded.out)["ids"] != random["ids"]


def test_import_lists_what_does_not_fit(run: Any, tmp_path: Path) -> None:
    save_file({"norm.weight": torch.zeros(3), "else": torch.zeros(1)}, tmp_path / "x.safetensors")
    out = tmp_path / "out.safetensors"
    found = run("import", tmp_path / "x.safetensors", "mudd-pythia-test", "-o", out)
    assert found.code == 2
    assert "norm.weight is [3], needs [64]" in found.err
    assert "else" in found.err
    assert "dense_bs.3 (for output.mix.static)" in found.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("head", "images", "text", "expected"),
    [
        ("imageclassification", 1, None, "probability 0.0769"),
        ("vqa", 1, "what?", "probability 0.5"),
        ("nlvr2", 2, "two temples", "id 1, probability"),
        ("captioning", 1, "a", "caption: "),
        ("retrieval", 1, "a temple", "similarity: "),
        ("features", 1, "a", "shape: [1, 20, 48]"),
    ],
)
def test_run_every_head(
    run: Any, photo: Path, head: str, images: int, text: str | None, expected: str
) -> None:
    options = ["--image", photo] * images + (["--text", text] if text else [])
    found = run("run", "beit3-test", "--head", head, *options)
    assert found.code == 0, found.err
    assert expected in found.out
    assert "the weights are random" in found.err


def test_run_names_what_is_wrong(run: Any, photo: Path, small: Path, tmp_path: Path) -> None:
    head = ("run", "beit3-test", "--head", "vqa")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(photo.read_bytes()[:2000])
    for arguments, text in (
        ((*head, "--text", "x"), "the head reads 'image'"),
        ((*head, "--image", photo), "the head reads 'text'"),
        ((*head, "--image", small, "--text", "x"), "this is not an image"),
        ((*head, "--image", cut, "--text", "x"), "this image cannot be read"),
        ((*head, "--image", tmp_path / "no.png", "--text", "x"), "there is no such file"),
        ((*head, "--image", photo, "--text", "x" * 100), "the text has 102 tokens"),
        (("run", small, "--text", "x", "--weights", small), "not a torch checkpoint"),
        (("run", small, "--text", "x", "--image", photo), "reads no image"),
    ):
        found = run(*arguments)
        assert found.code == 2, arguments
        assert text in found.err


# predict, generate, export


def test_predict_reads_and_writes_jsonl(run: Any, photo: Path, tmp_path: Path) -> None:
    rows = [{"image": photo.name, "text": "one"}, {"image": [photo.name], "text": "two"}]
    given = photo.parent / "given.jsonl"
    given.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    out = tmp_path / "out.jsonl"
    found = run("predict", "beit3-test", "--head", "vqa", "--input", given, "-o", out, "--top", 2)
    assert found.code == 0, found.err
    assert "predicted 2 of 2" in found.err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1]
    assert all(line["random_weights"] and len(line["classes"]) == 2 for line in lines)
    single = run("predict", "beit3-test", "--head", "vqa", "--image", photo, "--text", "one")
    assert json.loads(single.out)["classes"][:2] == lines[0]["classes"]


def test_a_bad_line_is_named_and_nothing_is_written(run: Any, photo: Path, tmp_path: Path) -> None:
    good = json.dumps({"image": photo.name, "text": "one"})
    for bad, text in (
        ("{", "not JSON"),
        ('{"picture": 1}', "not an example"),
        ('{"image": 3}', "not an example"),
        ('{"image": "no.png", "text": "x"}', "there is no such file"),
        ('{"text": "x"}', "the head reads 'image'"),
    ):
        given = photo.parent / "bad.jsonl"
        given.write_text(f"{good}\n{bad}\n")
        out = tmp_path / "out.jsonl"
        found = run("predict", "beit3-test", "--head", "vqa", "--input", given, "-o", out)
        assert found.code == 2
        assert text in found.err
        assert f"{given}:2" in found.err
        assert not out.exists()


def test_predict_embeds(run: Any, photo: Path, tmp_path: Path) -> None:
    given = photo.parent / "pairs.jsonl"
    rows = [{"image": photo.name, "text": text} for text in ("one", "two", "three")]
    given.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "embeddings.safetensors"
    found = run("predict", "beit3-test", "--head", "retrieval", "--input", given, "--embed", out)
    assert found.code == 0, found.err
    tensors = load_file(out)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "image": (3, 48),
        "text": (3, 48),
    }
    assert torch.equal(tensors["image"][0], tensors["image"][2])
    wrong = run(
        "predict", "beit3-test", "--head", "vqa", "--input", given, "--embed", tmp_path / "x"
    )
    assert wrong.code == 2
    assert not (tmp_path / "x").exists()


def test_generate_from_text_and_from_ids(run: Any) -> None:
    text = run("generate", "pythia-test", "--prompt", "ab", "--tokens", 5, "--json")
    ids = run("generate", "pythia-test", "--ids", "97,98", "--tokens", 5, "--json")
    assert json.loads(text.out)["ids"] == json.loads(ids.out)["ids"]
    assert json.loads(text.out)["prompt_ids"] == [97, 98]
    assert "the weights are random" in text.err
    plain = run("generate", "pythia-test", "--ids", "97 98", "--tokens", 5).out.split()
    assert list(map(int, plain)) == json.loads(ids.out)["ids"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["pythia-test"], "there is nothing to continue"),
        (["pythia-test", "--ids", "1,x"], "are not ids"),
        (["pythia-test", "--ids", "256"], "outside the vocabulary"),
        (["pythia-test", "--prompt", ""], "the text is empty"),
        (["pythia-test", "--prompt", "x" * 65], "there are positions for 64"),
        (["pythia-test", "--prompt", "x", "--tokenizer", "t.txt"], "there is no such file"),
        (["beit3-test", "--head", "vqa", "--prompt", "x"], "does not continue texts"),
    ],
)
def test_generate_names_what_is_wrong(run: Any, arguments: list[str], text: str) -> None:
    found = run("generate", *arguments)
    assert found.code == 2
    assert text in found.err


def test_export_is_the_inverse_of_import(run: Any, tmp_path: Path) -> None:
    model = mw.compile("beit3-test", head="nlvr2", seed=8)
    mw.save(model, tmp_path / "ours.safetensors")
    theirs, again = tmp_path / "theirs.pth", tmp_path / "again.safetensors"
    head = ("beit3-test", "--head", "nlvr2")
    assert run("export", tmp_path / "ours.safetensors", *head, "-o", theirs).code == 0
    assert "head.dense1.weight" in torch.load(theirs, weights_only=True)["model"]
    assert run("import", theirs, *head, "-o", again).code == 0
    ours, back = load_file(tmp_path / "ours.safetensors"), load_file(again)
    assert ours.keys() == back.keys()
    assert all(torch.equal(ours[name], back[name]) for name in ours)


def test_import_with_a_fresh_head_says_what_is_fresh(run: Any, tmp_path: Path) -> None:
    mw.export_weights(mw.compile("beit3-test", head="retrieval"), tmp_path / "a.pth")
    out = tmp_path / "out.safetensors"
    source = ("import", tmp_path / "a.pth", "beit3-test", "-o", out)
    assert run(*source, "--head", "vqa").code == 2
    assert not out.exists()
    found = run(*source, "--fresh", "vqa", "--set", "vqa_image=64")
    assert found.code == 0, found.err
    assert "initial values for heads.vqa.classes.weight" in found.err
    assert "resized embed.vision.position.weight to 67 rows" in found.err
    assert run(*source, "--fresh", "vqa", "--head", "nlvr2").code == 2


# The command itself


def test_usage_errors_exit_2(run: Any) -> None:
    assert run("frobnicate").code == 2
    assert run("show", "beit3-test", "--hed", "vqa").code == 2
    assert run("--version").out.startswith("multiway ")


def test_looking_does_not_import_torch() -> None:
    commands = (
        ["check", "beit3-base"],
        ["show", "mudd-pythia-1.4b"],
        ["graph", "beit3-test", "--head", "nlvr2"],
        ["graph", "mudd-pythia-test", "--format", "svg"],
        ["schema"],
        ["zoo"],
    )
    code = (
        "import sys\nfrom multiway import cli\n"
        f"for arguments in {commands!r}:\n"
        "    sys.argv = ['multiway', *arguments]\n"
        "    try:\n        cli.main()\n    except SystemExit:\n        pass\n"
        "    assert 'torch' not in sys.modules, arguments\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
