"""Wirings and families of one's own: where they are looked for, and what is refused."""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml

import multiway as mw
from multiway.specs import data_folders
from multiway.zoo import catalogue

WIRING = "doc: twice\nresidual: {gain: sublayer}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, with a data folder in it that nothing names yet."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "own"
    (data / "wirings").mkdir(parents=True)
    (data / "wirings" / "twice.yaml").write_text(WIRING)
    family = data / "families" / "mine"
    family.mkdir(parents=True)
    (family / "spec.yaml").write_text("extends: prenorm-test\nname: mine\nwiring: twice\n")
    (family / "sizes.yaml").write_text("mine-2: {depth: 2}\nmine-4: {depth: 4}\n")
    data.chmod(0o755)
    return data


def raised(code: str) -> str:
    with pytest.raises(mw.MultiwayError) as found:
        mw.load("prenorm-test", set={"wiring": "twice"})
    assert [each.code for each in found.value.problems] == [code]
    return str(found.value)


def gains() -> int:
    """How many gains the wiring of the folder gives, by its name."""
    spec = mw.load("mine-4")
    assert spec.wiring.use == "twice"
    return sum("residual.gain" in name for name in mw.build(spec).params)


def test_by_a_file_in_the_working_directory(folder: Path) -> None:
    assert "there is no wiring named 'twice'" in raised("unknown-wiring")
    Path("multiway.toml").write_text('data = ["own"]\n')
    assert gains() == 8
    entry = catalogue().entries["mine-2"]
    assert (entry.origin, entry.family, dict(entry.card)) == ("multiway.toml", "mine", {})
    assert mw.load("mine", set={"depth": 3}).depth == 3


def test_by_a_variable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIWAY_PATH", os.pathsep.join(["", str(folder)]))
    monkeypatch.chdir(folder.parent.parent)
    assert gains() == 8
    assert catalogue().entries["mine-2"].origin == "MULTIWAY_PATH"


def test_by_an_installed_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(folder.parent), *sys.path])
    point = EntryPoint("mine", "own", data_folders.GROUP)
    monkeypatch.setattr(data_folders, "installed", lambda group: (point,))
    assert gains() == 8
    gone = EntryPoint("mine", "own_that_went", data_folders.GROUP)
    monkeypatch.setattr(data_folders, "installed", lambda group: (gone,))
    assert raised("bad-data-folder") == (
        "entry point multiway.data: mine: error[bad-data-folder]: "
        "'own_that_went' is no package with files\n"
        "  expected: a package; or pip uninstall mine"
    )


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("data = [", "bad-data-folder", "multiway.toml: error[bad-data-folder]: not TOML: "),
        ("data = 'own'", "bad-data-folder", "data is no list of texts"),
        ("data = [3]", "bad-data-folder", "data is no list of texts"),
        ("dta = ['own']", "unknown-key", "nearest:  data"),
        ("data = ['nowhere']", "bad-data-folder", "'nowhere' is no folder"),
        ("data = ['own/wirings/twice.yaml']", "bad-data-folder", "is no folder"),
        ("data = ['..']", "path-escapes", "'..' leaves the folder of this file"),
        ("data = ['/usr']", "path-escapes", "others by MULTIWAY_PATH"),
        ("data = ['a\\u0000b']", "bad-data-folder", "is no folder"),
        ("data = ['link']", "path-escapes", "'link' leaves the folder of this file"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_a_file_may_not_say(text: str, code: str, words: str) -> None:
    Path("link").symlink_to("/usr")
    Path("multiway.toml").write_text(text.replace("'", '"'))
    assert words in raised(code)


def test_a_file_that_is_no_text(folder: Path) -> None:
    Path("multiway.toml").write_bytes(b"\xff\xfe")
    assert "cannot be read" in raised("bad-data-folder")


@pytest.mark.skipif(os.name != "posix", reason="owners and modes as POSIX has them")
def test_a_variable_names_folders_of_ones_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTIWAY_PATH", "own")
    assert "MULTIWAY_PATH: error[bad-data-folder]: 'own' is not absolute" in raised(
        "bad-data-folder"
    )
    monkeypatch.setenv("MULTIWAY_PATH", str(folder))
    folder.chmod(0o775)
    assert f"expected: chmod go-w {folder}" in raised("bad-data-folder")
    folder.chmod(0o755)
    monkeypatch.setattr(os, "getuid", lambda: os.stat(folder).st_uid + 1)
    assert "is somebody else's" in raised("bad-data-folder")


def test_a_name_that_is_taken_is_refused(folder: Path) -> None:
    Path("multiway.toml").write_text('data = ["own"]\n')
    (folder / "wirings" / "mudd.yaml").write_text(WIRING)
    text = raised("duplicate-name")
    assert "own/wirings/mudd.yaml: error[duplicate-name]: the wiring 'mudd' exists already" in text
    (folder / "wirings" / "mudd.yaml").unlink()
    sizes = folder / "families" / "mine" / "sizes.yaml"
    sizes.write_text("pythia-test: {depth: 2}\n")
    Path("multiway.toml").write_text('data = ["own", "own2"]\n')  # another list is read anew
    Path("own2").mkdir()
    assert "the spec 'pythia-test' exists already" in raised("duplicate-name")
    sizes.write_text("{}\n")
    folder.rename(Path("own3"))
    Path("own3/families/mine").rename("own3/families/pythia")
    Path("multiway.toml").write_text('data = ["own3"]\n')
    assert "the family 'pythia' exists already" in raised("duplicate-name")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "sizes.yaml",
            "[a, b]",
            "/sizes.yaml:1:1: error[wrong-type]: a spec is a mapping",
        ),
        (
            "variants.yaml",
            "three",
            "/variants.yaml:1:1: error[wrong-type]: a spec is a mapping",
        ),
    ],
)
def test_a_family_that_is_none(folder: Path, name: str, text: str, words: str) -> None:
    (folder / "families" / "mine" / name).write_text(text)
    Path("multiway.toml").write_text('data = ["own"]\n')
    assert words in raised("wrong-type")


# A wiring beside the spec


def test_a_wiring_is_a_file_beside_the_spec(tmp_path: Path) -> None:
    below = tmp_path / "a"
    below.mkdir()
    (below / "mine.yaml").write_text(WIRING)
    base = "extends: prenorm-test\nname: x\nwiring: {use: ./mine.yaml}\n"
    (below / "x.yaml").write_text(base)
    (tmp_path / "y.yaml").write_text("extends: a/x.yaml\nname: y\nwiring: {doc: changed}\n")
    spec = mw.load(tmp_path / "y.yaml")
    assert spec.wiring.use == str(below / "mine.yaml")
    assert spec.wiring.doc == "changed"
    assert spec.wiring.residual.gain is not None


def test_what_a_spec_is_made_from_is_one_text(folder: Path) -> None:
    Path("multiway.toml").write_text('data = ["own"]\n')
    specs = [
        mw.load("mine-4"),
        mw.load("prenorm-test", set={"wiring": "own/wirings/twice.yaml"}),
    ]
    Path("multiway.toml").unlink()
    for spec in specs:
        again = mw.load(yaml.safe_load(spec.text()))
        assert list(mw.build(again).params) == list(mw.build(spec).params)
        assert any("residual.gain" in name for name in mw.build(again).params)
        assert again.wiring.use is None
    kept = mw.load("mudd-pythia-test")
    assert mw.load(yaml.safe_load(kept.text())).wiring.use == "mudd"


def test_a_wiring_does_not_escape(folder: Path) -> None:
    (folder.parent / "outside.yaml").write_text(WIRING)
    inner = folder / "x.yaml"
    inner.write_text("extends: prenorm-test\nname: x\nwiring: ../outside.yaml\n")
    with pytest.raises(mw.MultiwayError, match=r"error\[path-escapes\]: '../outside.yaml' leaves"):
        mw.load(inner)
    with pytest.raises(mw.MultiwayError, match="is a file, but this spec is not one"):
        mw.load({"extends": "prenorm-test", "name": "x", "wiring": "own/wirings/twice.yaml"})


def test_a_setting_names_a_file_from_the_working_directory(folder: Path) -> None:
    spec = mw.load("prenorm-test", set={"wiring": "./own/wirings/twice.yaml"})
    assert spec.wiring.residual.gain is not None
    outside = folder.parent.parent / "outside.yaml"
    outside.write_text(WIRING)
    for name in (str(outside), "../outside.yaml"):  # whoever sets may name any file
        assert mw.load("prenorm-test", set={"wiring": name}).wiring.residual.gain is not None
    with pytest.raises(mw.MultiwayError, match=r"there is no file '/.*outsde.yaml'"):
        mw.load("prenorm-test", set={"wiring": str(outside).replace("outside", "outsde")})
    with pytest.raises(mw.MultiwayError) as found:
        mw.load("prenorm-test", set={"wiring.use": "./own/wirings/twise.yaml"})
    assert str(found.value) == (
        "--set:1:12: error[unknown-wiring]: there is no file './own/wirings/twise.yaml'\n"
        "    1 | wiring.use=./own/wirings/twise.yaml\n"
        "      |            ^^^^^^^^^^^^^^^^^^^^^^^^\n"
        "  expected: a file, named from the working directory\n"
        "  nearest:  own/wirings/twice.yaml"
    )
