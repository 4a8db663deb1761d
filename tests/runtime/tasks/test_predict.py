"""Files in, answers out: preprocessing, tokenizers, every head, and what is refused."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import multiway as mw
from multiway.commands.generate import text_of
from multiway.compiler.assemble.builder import Builder
from multiway.compiler.assemble.head import HeadKind
from multiway.compiler.assemble.parameters import Declared
from multiway.compiler.graph.layer_graph import LayerGraph
from multiway.compiler.heads import kinds
from multiway.runtime.answers import Answer, most_likely
from multiway.runtime.tasks.images import read_image
from multiway.runtime.tasks.predict import Example, Predictor, Request
from multiway.runtime.tasks.tokenizer import SentencePiece, checked_ids, open_tokenizer
from multiway.specs import MultiwayError, Spec
from multiway.specs import load as load_spec
from multiway.specs.language.fields import Kinds, key
from multiway.specs.language.inputs import Preprocess
from multiway.specs.library import Library
from multiway.zoo import catalogue

Image = pytest.importorskip("PIL.Image")
EXAMPLES = sorted((Path(__file__).parents[3] / "specs" / "examples").glob("*.yaml"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: Any) -> Path:
    """A wide gradient: red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, 96), np.linspace(0, 255, 48))
    pixels = np.stack([x, y, np.full_like(x, 64)], -1).astype(np.uint8)
    path = tmp_path_factory.mktemp("photo") / "gradient.png"
    Image.fromarray(pixels).save(path)
    return Path(path)


def preprocess(head: str) -> Preprocess:
    return mw.load("beit3-test").for_head(head).head.image_preprocess()


# Images


def test_most_tasks_press_the_whole_image_into_the_square(photo: Path) -> None:
    found = read_image(photo, size=32, preprocess=preprocess("vqa"))
    assert found.shape == (1, 3, 32, 32)
    with Image.open(photo) as image:
        small = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32)
    want = torch.from_numpy(small / 255).permute(2, 0, 1)
    torch.testing.assert_close(found[0], (want - 0.5) / 0.5)
    assert found[0, 0, 0, 0] < -0.9, "the left edge is in the picture"


def test_classification_takes_the_centre_and_imagenet_statistics(photo: Path) -> None:
    found = read_image(photo, size=28, preprocess=preprocess("imageclassification"))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = found[0] * std[:, None, None] + mean[:, None, None]
    # The shorter side becomes 28 / (224 / 256) = 32, the longer 64; columns 18 to 46 remain.
    assert abs(float(pixels[0, :, 0].mean()) - 18.5 / 64) < 0.02
    assert abs(float(pixels[0, :, -1].mean()) - 45.5 / 64) < 0.02
    assert abs(float(pixels[1, 0].mean()) - 2.5 / 32) < 0.02
    assert abs(float(pixels[2].mean()) - 64 / 255) < 1e-2


def test_any_mode_of_image_is_read(tmp_path: Path) -> None:
    for mode, name in (("L", "a.png"), ("RGBA", "b.png"), ("P", "c.gif"), ("CMYK", "d.jpg")):
        Image.new(mode, (9, 7)).save(tmp_path / name)
        found = read_image(tmp_path / name, size=16, preprocess=preprocess("vqa"))
        assert found.shape == (1, 3, 16, 16)


# Heads


def answering() -> list[Any]:
    """(spec, head) of every head of BEiT-3, and of one for each kind that it has not."""
    found, asked = [], set()
    for source in ("beit3-test", "pythia-test", *EXAMPLES):
        for name, head in mw.load(source).heads.items():
            kind = getattr(head, "kind", "")
            if source == "beit3-test" or kind not in asked:
                found.append(pytest.param(source, name, id=f"{kind}-{name}"))
            asked.add(kind)
    assert asked == kinds().classes.keys(), "specs/examples show every kind of head"
    return found


def example_for(predictor: Predictor, photo: Path) -> Example:
    """One with everything that the head reads."""
    forms = [predictor.model.spec.inputs[base].form() for _, base in predictor.names]
    text = "a <mask> here" if "tokens" in forms else None
    return Example(images=(photo,) * forms.count("image"), text=text)


@pytest.mark.parametrize(("source", "head"), answering())
def test_every_head_answers(source: str | Path, head: str, photo: Path) -> None:
    predictor = Predictor(mw.compile(source, head=head), top=3, tokens=4)
    example = example_for(predictor, photo)
    result = predictor(example)
    assert result
    assert json.loads(json.dumps(result)) == result
    assert result == predictor(example), "the same again"


@pytest.mark.parametrize(("source", "head"), answering())
def test_an_answer_pickles(source: str | Path, head: str, photo: Path) -> None:
    model = mw.compile(source, head=head)
    predictor = Predictor(model, tokens=4)
    example = example_for(predictor, photo)
    before = predictor(example)
    model.answer = pickle.loads(pickle.dumps(model.answer))
    assert Predictor(model, tokens=4)(example) == before


def test_a_text_that_is_continued_does_not_end() -> None:
    change = {"inputs.tokens.special": "{end: 0}", "inputs.tokens.vocab": 300}
    predictor = Predictor(mw.compile("pythia-test", set=change))
    assert predictor.inputs(Example(text="a"))["tokens"].tolist() == [[1 + ord("a")]]
    read = Predictor(mw.compile("beit3-test", head="mlm", set={"heads.mlm.reads": '["text"]'}))
    assert read.inputs(Example(text="a"))["text"].tolist() == [[0, 3 + ord("a"), 2]]


def test_a_caption_starts_from_nothing(photo: Path) -> None:
    predictor = Predictor(mw.compile("beit3-test", head="captioning"), tokens=4)
    alone = predictor(Example(images=(photo,)))
    assert alone == predictor(Example(images=(photo,), text="words"))
    with pytest.raises(MultiwayError, match="the head reads 'image'"):
        predictor(Example(text="words"))


@dataclass(frozen=True, kw_only=True)
class Channels(HeadKind):
    """A kind of head that multiway has not: the likeliest channels of the last token."""

    kind: Literal["channels"] = key("channels", default="channels")
    answers: bool = key("whether it predicts", default=True)

    def declare(self, declared: Declared, path: str) -> None:
        pass

    def programs(self, spec: Spec) -> tuple[str, ...]:
        return ("forward",)

    def inputs(self, spec: Spec) -> tuple[str, ...]:
        return tuple(spec.inputs)

    def build(self, builder: Builder, program: str) -> LayerGraph:
        names = self.inputs(builder.spec)
        seq = builder.sequence(names, builder.inputs_for(names))
        return builder.output(hidden=builder.trunk(seq))

    def answer(self, spec: Spec) -> Answer | None:
        if not self.answers:
            return None
        names = self.inputs(spec)
        return Answer(predict=self.largest, embed=self.last, continues=names[0])

    @staticmethod
    def last(request: Request) -> dict[str, torch.Tensor]:
        return {name: request.model(**{name: x})[0, -1] for name, x in request.inputs.items()}

    @staticmethod
    def largest(request: Request) -> dict[str, Any]:
        ((name, hidden),) = Channels.last(request).items()
        return {name: most_likely(hidden.softmax(-1), request.top)}


def with_channels(**more: Any) -> Spec:
    change = {"extends": "pythia-test", "heads": {"task": {"kind": "channels", **more}}}
    return load_spec(
        {"multiway": 1, "name": "with-channels", **change},
        library=Library(heads=Kinds(*kinds().classes.values(), Channels), specs=catalogue()),
    ).for_head("task")


def test_a_new_kind_of_head_predicts_by_its_class_alone() -> None:
    model = mw.compile(with_channels())
    model.answer = pickle.loads(pickle.dumps(model.answer))
    predictor = Predictor(model, top=2)
    with torch.inference_mode():
        hidden = model(tokens=torch.tensor([list(b"ab")]))[0, -1]
    best = hidden.argsort(descending=True)[:2].tolist()
    found = predictor(Example(text="ab"))
    assert [each["id"] for each in found["tokens"]] == best
    torch.testing.assert_close(predictor.embed(Example(text="ab"))["tokens"], hidden)
    assert text_of(with_channels()) == "tokens", "multiway generate goes on where the head says"


def test_a_head_without_an_answer_is_named() -> None:
    spec = with_channels(answers=False)
    with pytest.raises(MultiwayError) as caught:
        Predictor(mw.compile(spec))
    assert str(caught.value) == (
        "with-channels: error[unknown-head]: head 'task' predicts nothing from files\n"
        "  expected: a head whose kind defines `answer`; see docs/adding_a_head.md"
    )
    with pytest.raises(MultiwayError, match="head 'task' does not continue texts"):
        text_of(spec)


def test_two_images_are_told_apart(photo: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    predictor = Predictor(mw.compile("beit3-test", head="nlvr2"))
    given = predictor.inputs(Example(images=(photo, tmp_path / "black.png"), text="x"))
    assert not torch.equal(given["image_a"], given["image_b"])
    assert float(given["image_b"].max()) == -1.0


def test_masks_of_a_text_are_filled_in() -> None:
    predictor = Predictor(
        mw.compile("beit3-test", head="mlm", set={"heads.mlm.reads": '["text"]'}), top=2
    )
    (first, second) = predictor(Example(text="a<mask>b<mask>"))["masks"]
    assert (first["position"], second["position"]) == (2, 4)
    assert len(first["words"]) == 2
    with pytest.raises(MultiwayError, match="nothing to predict"):
        predictor(Example(text="no mask"))


def test_embeddings_are_what_the_programs_give(photo: Path) -> None:
    model = mw.compile("beit3-test", head="retrieval")
    predictor = Predictor(model)
    both = predictor.embed(Example(images=(photo,), text="words"))
    assert both.keys() == {"image", "text"}
    assert both["image"].norm().item() == pytest.approx(1, abs=1e-5)
    alone = predictor.embed(Example(text="words"))
    torch.testing.assert_close(alone["text"], both["text"])
    with pytest.raises(MultiwayError, match="has no embeddings"):
        Predictor(mw.compile("beit3-test", head="vqa")).embed(Example(text="x"))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example(text="x"), "the head reads 'image'"),
        (Example(images=(Path("no.png"),), text="x"), "there is no such file"),
        (Example(images=(Path(__file__),), text="x"), "this is not an image"),
        (Example(text="x" * 80), "the head reads 'image'"),
    ],
)
def test_what_is_missing_or_no_image_is_named(example: Example, message: str) -> None:
    predictor = Predictor(mw.compile("beit3-test", head="vqa"))
    with pytest.raises(MultiwayError, match=message):
        predictor(example)


def test_a_truncated_image_and_a_long_text_are_named(photo: Path, tmp_path: Path) -> None:
    predictor = Predictor(mw.compile("beit3-test", head="vqa"))
    cut = tmp_path / "cut.png"
    whole = photo.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MultiwayError, match="cannot be read"):
        predictor(Example(images=(cut,), text="x"))
    with pytest.raises(MultiwayError, match="the text has 72 tokens, there are positions for 62"):
        predictor(Example(images=(photo,), text="x" * 70))


# Tokenizers


def test_bytes_go_there_and_back() -> None:
    source = mw.load("beit3-test").inputs["text"]
    tokenizer = open_tokenizer(None, source, end=True)
    ids = tokenizer.encode("h\u00e9 <mask>")
    assert ids[0] == 0
    assert ids[-2:] == [319, 2]
    assert tokenizer.decode(ids) == "h\u00e9 "
    assert open_tokenizer(None, source, end=False).encode("a") == [0, 3 + ord("a")]


def test_sentencepiece_has_the_ids_of_xlm_r(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    words = tmp_path / "words.txt"
    words.write_text("\n".join(["the cat sat on the mat", "a dog sat on a log"] * 50))
    sentencepiece.SentencePieceTrainer.train(
        input=str(words),
        model_prefix=str(tmp_path / "beit3"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = tmp_path / "beit3.model"
    source = mw.load("beit3-test").inputs["text"]
    tokenizer = open_tokenizer(model, source, end=True)
    assert isinstance(tokenizer, SentencePiece)
    raw = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ids = tokenizer.encode("the cat")
    assert ids == [0, *(piece + 1 for piece in raw.encode("the cat")), 2]
    assert tokenizer.decode(ids) == "the cat"
    assert 3 in tokenizer.encode("\u4e16"), "an unknown character is <unk>, 3"
    assert tokenizer.encode("the <mask>")[-2] == 319


def test_a_tokenizers_file(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({"the": 4, "cat": 5, "?": 3}, unk_token="?")
    made = tokenizers.Tokenizer(words)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    source = mw.load("pythia-test").inputs["tokens"]
    tokenizer = open_tokenizer(tmp_path / "tokenizer.json", source, end=False)
    assert tokenizer.encode("the cat dog") == [4, 5, 3]
    assert tokenizer.decode([4, 5]) == "the cat"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("words.txt", b"the", "'.txt' is not a known kind|.txt is not a known kind"),
        ("tokenizer.json", b"{}", "not a tokenizers file"),
        ("beit3.spm", b"garbage", "not a sentencepiece model"),
        ("missing.json", None, "there is no such file"),
    ],
)
def test_what_is_no_tokenizer_is_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MultiwayError, match=message):
        open_tokenizer(tmp_path / name, mw.load("beit3-test").inputs["text"], end=True)


def test_ids_outside_the_vocabulary_are_named() -> None:
    source = mw.load("pythia-test").inputs["tokens"]
    assert checked_ids([0, 255], source, longest=4, place="--ids") == [0, 255]
    for ids, message in (
        ([256], "the id 256 is outside the vocabulary, which ends at 255"),
        ([-1], "the id -1 is outside"),
        ([], "the text is empty"),
        ([1] * 5, "the text has 5 tokens, there are positions for 4"),
    ):
        with pytest.raises(MultiwayError, match=message):
            checked_ids(ids, source, longest=4, place="--ids")
