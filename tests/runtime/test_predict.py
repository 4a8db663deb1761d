"""Files in, answers out: preprocessing, tokenizers, every head, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import multiway as mw
from multiway.runtime.media import read_image
from multiway.runtime.predict import Example, Predictor
from multiway.runtime.tokenizer import SentencePiece, checked_ids, open_tokenizer
from multiway.specs import MultiwayError
from multiway.specs.language.inputs import Preprocess

Image = pytest.importorskip("PIL.Image")
HEADS = list(mw.load("beit3-test").heads)


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


@pytest.mark.parametrize("head", HEADS)
def test_every_head_answers(head: str, photo: Path) -> None:
    predictor = Predictor(mw.compile("beit3-test", head=head), top=3, tokens=4)
    images = (photo, photo) if head == "nlvr2" else (photo,)
    reads_text = any(base == "text" for _, base in predictor.names)
    text = "a <mask> here" if reads_text else None
    result = predictor(Example(images=images, text=text))
    assert json.loads(json.dumps(result)) == result
    assert result == predictor(Example(images=images, text=text)), "the same again"


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
