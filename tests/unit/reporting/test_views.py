"""Rows as pictures, texts and strokes."""

from io import BytesIO

import numpy as np
import pytest
from handmade import write_corpus
from PIL import Image

from pipeline.reporting import templating
from pipeline.reporting.views import AS_IT_IS, STROKES, THUMBNAIL, look_up, picture, strokes


def shown(view):
    return templating.templates().get_template("parts.html").module.payload(view)


def encoded(image, form):
    buffer = BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def noise(size, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8))


def test_rows_are_looked_up_by_number(tmp_path):
    corpus = write_corpus(tmp_path, ["a", "a", "b"], [b"one", b"two", b"three"], kind="text", shard_rows=2)
    views = look_up(corpus, [2, 0, 2])
    assert [(v.row, v.id, v.label, v.kind, v.drawn) for v in views.values()] == [
        (0, "row-000", "a", "text", {"text": "one"}), (2, "row-002", "b", "text", {"text": "three"}),
    ]  # fmt: skip


def test_a_text_is_escaped_cut_and_decoded_as_far_as_it_goes(tmp_path):
    text = "<b>où</b> ".encode() + b"\xff" + b"x" * 500
    view = look_up(write_corpus(tmp_path, ["a"], [text], kind="text"), [0])[0]
    assert view.drawn["text"].endswith("x …") and "\ufffd" in view.drawn["text"]
    assert "&lt;b&gt;où&lt;/b&gt;" in shown(view)


def test_a_vector_is_strokes_and_its_first_values(tmp_path):
    view = look_up(write_corpus(tmp_path, ["a"], np.array([[1, -2, 0, 0.5]], np.float32)), [0])[0]
    assert view.drawn["path"] == "M12.5 50V27.0M37.5 50V96.0M62.5 50V50.0M87.5 50V38.5"
    assert "1, -2, 0, 0.5" in shown(view)


@pytest.mark.parametrize(("values", "floor"), [(np.zeros(1000), 96), (np.arange(1000), 96), (-np.arange(1000), 50)])
def test_a_long_vector_is_drawn_by_the_means_of_its_parts(values, floor):
    path = strokes(values)["path"]
    assert path.count("M") == STROKES and f" {floor}V" in path and "nan" not in path


def test_a_small_picture_is_shown_as_it_is(tmp_path):
    image = encoded(noise((8, 6)), "PNG")
    view = look_up(write_corpus(tmp_path, ["a"], [image], kind="image"), [0])[0]
    assert (view.drawn["width"], view.drawn["height"], view.drawn["grain"]) == (6, 8, True)
    assert view.drawn["src"].startswith("data:image/png;base64,")
    assert 'class="grain"' in shown(view) and 'alt="row-000, labelled a"' in shown(view)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "I;16", "CMYK"])
def test_a_large_picture_of_any_mode_is_made_smaller(mode):
    image = noise((400, 300))
    deep = Image.fromarray(np.asarray(image)[:, :, 0].astype("<u2") << 8)
    data = encoded(deep if mode == "I;16" else image.convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    assert len(data) > AS_IT_IS
    drawn = picture(data)
    assert (drawn["width"], drawn["height"], drawn["grain"]) == (90, THUMBNAIL, False)
    assert drawn["src"].startswith("data:image/webp") and len(drawn["src"]) < 20_000


@pytest.mark.parametrize(("label", "short"), [("birds/owl", "owl-1.png"), ("cats", "birds/owl/owl-1.png")])
def test_an_id_is_told_without_the_folder_that_is_its_label(label, short):
    from pipeline.reporting.views import View

    assert View(row=0, id="birds/owl/owl-1.png", label=label, kind="text", drawn={}).short_id == short
