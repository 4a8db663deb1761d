"""One numbering of the kinds of norms, in Python and in C."""

from __future__ import annotations

import re

from multiway.runtime.kernels.native import build
from multiway.runtime.kernels.native.calls import NORMS


def test_the_header_numbers_norms_as_python_does() -> None:
    text = (build.HEADERS / "norm_kinds.h").read_text()
    (names,) = re.findall(r"enum \{ ([\w, ]+) \};", text)
    assert names.lower().split(", ") == ["no_norm", *NORMS[1:]] and not NORMS[0]


def test_no_kernel_numbers_them_by_itself() -> None:
    texts = {path: path.read_text() for path in build.HEADERS.parent.rglob("*.[ch]")}
    using = {path for path, text in texts.items() if "LAYER_NORM" in text}
    declaring = [path.name for path in using if re.search(r"enum \{[^}]*LAYER_NORM", texts[path])]
    assert declaring == ["norm_kinds.h"] and len(using) > 6
