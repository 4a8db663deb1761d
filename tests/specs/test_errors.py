"""Every error is worded for a person who has to act on it; the words are compared literally.

A case is bad/CODE.yaml, or bad/CODE-MORE.yaml, with its text in the .txt of the same name. Options
of the command line stand in a first line `# --set NAME=VALUE`.

`python tests/specs/test_errors.py` writes the texts again: read what has changed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import multiway as mw
from multiway.compiler.graph.registry import activations
from multiway.compiler.heads import kinds
from multiway.specs.data_folders import wiring_files
from multiway.specs.errors import one_of
from multiway.specs.text.source import MAX_BYTES

HERE = Path(__file__).parent
BAD = HERE / "bad"
CASES = sorted(path.stem for path in BAD.glob("*.yaml"))
PACKAGE = Path(mw.__file__).parent


def error_of(case: str) -> mw.MultiwayError:
    """The error of a case, which loading or building raises. The folder must be the current one."""
    first, _, _ = Path(f"{case}.yaml").read_text(encoding="utf-8").partition("\n")
    settings = dict(re.findall(r"--set (\S+?)=(\S+)", first))
    with pytest.raises(mw.MultiwayError) as found:
        build_all(mw.load(f"{case}.yaml", set=settings))
    return found.value


def build_all(spec: mw.Spec) -> None:
    for head in spec.heads:
        mw.build(spec, head=head)


def shown(error: mw.MultiwayError) -> str:
    """The text of an error, with places inside the package as they stand in the repository.

    Lists that grow with every new head or wiring have a name, so that a new one changes no text.
    """
    text = str(error).replace(f"{PACKAGE}/", "") + "\n"
    lists = {
        "HEAD KINDS": list(kinds().classes),
        "WIRINGS": sorted(wiring_files()),
        "ACTIVATIONS": list(activations()),
    }
    for label, names in lists.items():
        text = text.replace(one_of(names), f"one of the {label}")
    return text


@pytest.fixture
def bad_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)


@pytest.mark.usefixtures("bad_folder")
@pytest.mark.parametrize("case", CASES)
def test_a_bad_spec_has_its_words_and_carets_under_text(case: str) -> None:
    error = error_of(case)
    assert shown(error) == (BAD / f"{case}.txt").read_text(encoding="utf-8")
    codes = [problem.code for problem in error.problems]
    assert any(case == code or case.startswith(f"{code}-") for code in codes), codes
    for problem in error.problems:
        if problem.span is not None and problem.span.text:
            _, line, marks = problem.render().splitlines()[:3]
            under = line[marks.index("^") : len(marks)]
            # A place behind the last character says that something is missing there.
            assert under.strip() or marks.count("^") == 1, problem.render()


def test_no_text_is_left_over() -> None:
    assert sorted(path.stem for path in BAD.glob("*.txt")) == CASES


@pytest.mark.parametrize("good", ["decoder", "pair"])
def test_what_the_cases_spoil_is_good(good: str) -> None:
    build_all(mw.load(BAD / "parts" / f"{good}.yaml"))


# Errors that no small YAML file can show, each with its literal text


def test_no_such_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert raised(lambda: mw.load("gone.yaml")) == (
        "gone.yaml: error[no-such-file]: there is no such file"
    )


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("specs.yaml").mkdir()
    assert raised(lambda: mw.load("specs.yaml")) == (
        "specs.yaml: error[not-a-file]: this is a folder, not a spec\n  expected: a .yaml file"
    )


def test_a_name_that_no_file_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "x" * 300 + ".yaml"
    assert raised(lambda: mw.load(name)) == (
        f"{name}: error[unreadable]: cannot be read: File name too long"
    )
    assert raised(lambda: mw.load("a\0b.yaml")) == (
        "a\\x00b.yaml: error[unreadable]: cannot be read: embedded null byte"
    )
    assert raised(lambda: mw.load("x" * 5000)).startswith("'xxx")


def test_a_circle_of_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").symlink_to("b.yaml")
    Path("b.yaml").symlink_to("a.yaml")
    Path("c.yaml").write_text("extends: a.yaml\n")
    assert raised(lambda: mw.load("a.yaml")) == (
        "a.yaml: error[unreadable]: cannot be read: Too many levels of symbolic links"
    )
    assert raised(lambda: mw.load("c.yaml")) == (
        "c.yaml:1:10: error[unknown-spec]: there is no file 'a.yaml'\n"
        "    1 | extends: a.yaml\n"
        "      |          ^^^^^^\n"
        "  expected: a file, named from the folder of this spec\n"
        "  nearest:  a.yaml"
    )


def test_a_link_out_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.yaml").write_text("multiway: 1\n")
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    Path("link.yaml").symlink_to(tmp_path / "secret.yaml")
    Path("spec.yaml").write_text("extends: link.yaml\n")
    assert raised(lambda: mw.load("spec.yaml")) == (
        "spec.yaml:1:10: error[path-escapes]: 'link.yaml' leaves the folder of this spec\n"
        "    1 | extends: link.yaml\n"
        "      |          ^^^^^^^^^\n"
        "  expected: a file in the same folder or below"
    )


def test_a_huge_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Path("huge.yaml").open("wb") as file:
        file.truncate(100_000_000)  # sparse: takes no space
    assert raised(lambda: mw.load("huge.yaml")) == (
        "huge.yaml: error[too-large]: 100,000,000 bytes are too many for a spec\n"
        "  expected: at most 1,048,576"
    )


def test_a_file_without_end() -> None:
    assert raised(lambda: mw.load("/dev/zero")) == (
        "/dev/zero: error[too-large]: 1,048,577 bytes are too many for a spec\n"
        "  expected: at most 1,048,576"
    )


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    text = (BAD / "parts" / "decoder.yaml").read_text(encoding="utf-8")
    path = tmp_path / "large.yaml"
    path.write_text(text + "#" * (MAX_BYTES - len(text)))
    assert mw.load(path).depth == 2
    path.write_text(path.read_text(encoding="utf-8") + "#")
    assert "1,048,577 bytes" in raised(lambda: mw.load(path))


def test_many_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("many.yaml").write_text("cite: [" + "a," * 200_000 + "]\n")
    assert raised(lambda: mw.load("many.yaml")).splitlines()[0] == (
        "many.yaml:1:200004: error[too-large]: more than 100,000 values"
    )


def test_ten_thousand_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deep.yaml").write_text("doc: " + "[" * 10_000 + "]" * 10_000)
    Path("deep_block.yaml").write_text("".join(" " * i + "a:\n" for i in range(1000)))
    assert raised(lambda: mw.load("deep.yaml")).splitlines()[0] == (
        "deep.yaml:1:69: error[too-deep]: nested more than 64 levels deep"
    )
    assert raised(lambda: mw.load("deep_block.yaml")) == (
        "deep_block.yaml:65:65: error[too-deep]: nested more than 64 levels deep\n"
        f"   65 | {' ' * 64}a:\n"
        f"      | {' ' * 64}^"
    )


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"name: caf\xe9\n", "line 1 is not UTF-8 text: it holds the byte 0xe9"),
        (
            b"\xef\xbb\xbfmultiway: 1\nname: \xff\n",
            "line 2 is not UTF-8 text: it holds the byte 0xff",
        ),
        ("name: x".encode("utf-16"), "line 1 is not UTF-8 text: it holds the byte 0xff"),
    ],
)
def test_not_utf8(data: bytes, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin.yaml").write_bytes(data)
    assert raised(lambda: mw.load("latin.yaml")) == (
        f"latin.yaml: error[not-utf8]: {where}\n  expected: a text file saved as UTF-8"
    )


def test_a_long_chain_of_extends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(40):
        Path(f"{i}.yaml").write_text(f"extends: {i + 1}.yaml\n")
    way = " -> ".join(f"{i}.yaml" for i in range(1, 18))
    assert raised(lambda: mw.load("0.yaml")) == (
        "16.yaml:1:10: error[cyclic-extends]: more than 16 specs extend one another\n"
        "    1 | extends: 17.yaml\n"
        "      |          ^^^^^^^\n"
        f"  way: {way}"
    )


def test_a_long_chain_of_likes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"  h{i}: {{like: h{i + 1}}}\n" for i in range(5000)]
    text = (BAD / "parts" / "pair.yaml").read_text(encoding="utf-8")
    Path("likes.yaml").write_text(text + "".join(lines) + "  h5000: features\n")
    assert raised(lambda: mw.load("likes.yaml")).splitlines() == [
        "likes.yaml:37:15: error[cyclic-like]: more than 16 heads are like one another",
        "   37 |   h16: {like: h17}",
        "      |               ^^^",
    ]


def test_many_heads_that_are_like_a_large_one(tmp_path: Path) -> None:
    pools = ", ".join(f"first of text_{i}" for i in range(5000))
    text = (BAD / "parts" / "pair.yaml").read_text(encoding="utf-8")
    text += f"  large: {{like: classes, pool: [{pools}]}}\n"
    text += "".join(f"  h{i}: {{like: large}}\n" for i in range(100))
    (tmp_path / "likes.yaml").write_text(text)
    assert "error[too-large]: more than 100,000 values once likes are filled in" in raised(
        lambda: mw.load(tmp_path / "likes.yaml")
    )


def test_unknown_name_of_a_spec() -> None:
    assert raised(lambda: mw.load("mudd-pythia-1.4")) == (
        "mudd-pythia-1.4: error[unknown-spec]: "
        "there is neither a zoo entry nor a file of this name\n"
        "  expected: a name that `multiway zoo` lists, a path, or - for standard input\n"
        "  nearest:  mudd-pythia-1.4b"
    )


@pytest.fixture
def decoder() -> Path:
    return BAD / "parts" / "decoder.yaml"


def test_unknown_set(decoder: Path) -> None:
    assert raised(lambda: mw.load(decoder, set={"dept": 3})) == (
        "--set:1:1: error[unknown-set]: 'dept' is not a dim of this spec\n"
        "    1 | dept=3\n"
        "      | ^^^^\n"
        "  expected: one of depth, width, num_heads, vocab, context; anything else by its path, "
        "as in block.order=parallel\n"
        "  nearest:  depth"
    )
    assert raised(lambda: mw.load(decoder, set={"dims.dept": 3})).splitlines()[1:3] == [
        "    1 | dims.dept=3",
        "      |      ^^^^",
    ]


def test_set_of_a_part_of_the_spec(decoder: Path) -> None:
    assert mw.load(decoder, set={"wiring": "mudd"}).wiring.mix is not None
    assert mw.load(decoder, set={"wiring": "{use: mudd, mix: {static: ~}}"}).wiring.mix is not None
    assert mw.load(decoder, set={"name": "another"}).name == "another"
    assert raised(lambda: mw.load(decoder, set={"heads": 3})) == (
        "--set:1:7: error[wrong-type]: heads is 3\n"
        "    1 | heads=3\n"
        "      |       ^\n"
        "  expected: a mapping"
    )
    assert raised(lambda: mw.load(decoder, set={"extends": "pythia"})).startswith(
        "--set:1:1: error[unknown-set]: 'extends' is not a dim of this spec\n"
    )


def test_set_with_a_name_missing(decoder: Path) -> None:
    assert raised(lambda: mw.load(decoder, set={"block..order": "parallel"})) == (
        "--set:1:7: error[unknown-set]: a name is missing here\n"
        "    1 | block..order=parallel\n"
        "      |       ^"
    )


def test_set_with_an_endless_path(decoder: Path) -> None:
    text = raised(lambda: mw.load(decoder, set={".".join(["block"] * 3000): 1}))
    assert text.startswith("--set:1:1: error[unknown-set]: a path of more than 64 names\n")


def test_set_to_what_is_not_yaml(decoder: Path) -> None:
    assert raised(lambda: mw.load(decoder, set={"block.ffn": "{hidden: 4"})).splitlines()[:3] == [
        "--set:1:11: error[yaml-syntax]: not valid YAML: did not find expected ',' or '}'",
        "    1 | {hidden: 4",
        "      |           ^",
    ]
    assert raised(lambda: mw.load(decoder, set={"depth": object()})) == (
        "--set: error[wrong-type]: the value of 'depth' is a object\n"
        "  expected: plain data: numbers, texts, true, false, lists and mappings of them"
    )


def test_set_to_a_bad_value(decoder: Path) -> None:
    assert raised(lambda: mw.load(decoder, set={"vocab": "4 * widht"})) == (
        "--set:1:11: error[unknown-name]: 'widht' is not known here\n"
        "    1 | vocab=4 * widht\n"
        "      |           ^^^^^\n"
        "  expected: one of context, depth, num_heads, width\n"
        "  nearest:  width"
    )


def test_a_mapping_that_yaml_cannot_hold() -> None:
    assert raised(lambda: mw.load({"multiway": 1, "name": {1j}})) == (
        "<mapping>: error[wrong-type]: this mapping holds what YAML cannot: "
        "('cannot represent an object', 1j)\n"
        "  expected: plain data: numbers, texts, true, false, None, lists and dicts of them"
    )


def test_a_mapping_inside_itself() -> None:
    document: dict[str, object] = {"multiway": 1}
    document["dims"] = document
    assert "error[yaml-syntax]: alias *id001 has no anchor before it" in raised(
        lambda: mw.load(document)
    )


def test_a_mapping_shows_its_lines() -> None:
    text = raised(lambda: mw.load({"multiway": 1, "dims": {"depth": "2 *"}}))
    assert "<mapping>:3:" not in text  # what is missing is said first
    document = {"extends": "mudd-pythia", "dims": {"depth": "2 *"}}
    assert raised(lambda: mw.load(document)) == (
        "<mapping>:3:13: error[bad-expression]: the expression ends too early\n"
        "    3 |   depth: 2 *\n"
        "      |             ^"
    )


def test_unknown_head_and_program() -> None:
    spec = mw.load(BAD / "parts" / "pair.yaml")
    heads = "  expected: one of classes, caption, match, features"
    assert (
        raised(lambda: mw.build(spec))
        == f"pair: error[unknown-head]: pair has several heads\n{heads}"
    )
    assert raised(lambda: mw.build(spec, head="classs")) == (
        f"pair: error[unknown-head]: pair has no head 'classs'\n{heads}\n  nearest:  classes"
    )
    assert raised(lambda: mw.build(spec, head="match", program="encode_txt")) == (
        "pair: error[unknown-program]: head 'match' has no program 'encode_txt'\n"
        "  expected: one of loss, encode_image, encode_text\n"
        "  nearest:  encode_text"
    )


def raised(call: Callable[[], object]) -> str:
    with pytest.raises(mw.MultiwayError) as found:
        call()
    return str(found.value)


# No code without a case

SOURCES = ["specs/**/*.py", "compiler/heads/*.py", "compiler/assemble/**/*.py"]
_CODE = re.compile(
    r"""(?:\.add|\.one|\.error|ExpressionError|Problem)\(\s*(?:code=)?"([a-z0-9-]+)",\s"""
)
ELSEWHERE = {
    "no-such-file": test_no_such_file,
    "not-a-file": test_a_folder,
    "unreadable": test_a_name_that_no_file_can_have,
    "not-utf8": test_not_utf8,
    "unknown-set": test_unknown_set,
    "unknown-program": test_unknown_head_and_program,
    "bad-data-folder": "tests/specs/test_data_folders.py",
    "duplicate-name": "tests/specs/test_data_folders.py",
    "bad-plugin": "tests/compiler/test_plugins.py",
    "missing-input": "tests/runtime/tasks/test_predict.py",  # a text without a mask
}


def codes_in_sources() -> Iterator[str]:
    for pattern in SOURCES:
        for path in sorted(PACKAGE.glob(pattern)):
            yield from _CODE.findall(path.read_text(encoding="utf-8"))


def test_every_code_has_a_case() -> None:
    texts = "".join((BAD / f"{case}.txt").read_text(encoding="utf-8") for case in CASES)
    shown_codes = set(re.findall(r"error\[([a-z0-9-]+)\]", texts))
    codes = set(codes_in_sources())
    assert len(codes) > 40, "the pattern no longer finds what the sources say"
    assert codes - shown_codes - set(ELSEWHERE) == set()
    assert set(ELSEWHERE) - codes == set()


def write_texts() -> None:
    with contextlib.chdir(BAD):
        for case in CASES:
            Path(f"{case}.txt").write_text(shown(error_of(case)), encoding="utf-8")


if __name__ == "__main__":
    write_texts()
