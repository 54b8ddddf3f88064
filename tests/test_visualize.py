import colorsys

import numpy as np
import pytest
from PIL import ImageFont

from kmax_tf import visualize
from kmax_tf.visualize import assignment_picture, contact_sheet, decode, overlay, shades, webp

RED, BLUE = (220, 20, 60), (30, 60, 200)


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size, factor", [((97, 97), 6), ((65, 128), 4), ((600, 400), 1)])
def test_small_images_are_enlarged(size, factor):
    picture = overlay(noise(*size), np.zeros(size, np.int32), [])
    assert picture.dtype == np.uint8
    assert picture.shape == (size[0] * factor, size[1] * factor, 3)


def test_void_is_the_image_darker():
    image = noise(520, 520)
    segment_map = np.zeros((520, 520), np.int32)
    segment_map[100:200, 100:200] = 9
    picture = overlay(image, segment_map, [(9, "cat", RED)])
    void = segment_map == 0
    np.testing.assert_allclose(picture[void], 0.6 * image[void], atol=0.51)
    assert np.abs(picture[~void] - 0.6 * image[~void]).mean() > 20


def test_segments_have_their_color_and_things_of_a_class_differ():
    image = np.full((520, 520, 3), 128, np.uint8)
    segment_map = np.repeat(np.arange(1, 14), 40)[None].repeat(520, 0).astype(np.int32)
    segments = [(i, "", RED if i < 13 else BLUE) for i in range(1, 14)]
    centers = overlay(image, segment_map, segments)[260, 20::40].astype(float)
    np.testing.assert_allclose(centers[0], 0.45 * 128 + 0.55 * np.array(RED), atol=1)
    np.testing.assert_allclose(centers[12], 0.45 * 128 + 0.55 * np.array(BLUE), atol=1)
    apart = np.abs(centers[:, None] - centers[None]).sum(-1) + 1000 * np.eye(13)
    assert apart.min() > 12
    for center in centers[:12]:  # still reds, from violet to orange
        hue = colorsys.rgb_to_hsv(*(center / 255))[0]
        assert min(hue, 1 - hue) < 0.15


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (0, 0, 142), (255, 228, 255)])
def test_first_of_a_class_has_its_very_color(color):
    image = np.zeros((520, 520, 3), np.uint8)
    picture = overlay(image, np.ones((520, 520), np.int32), [(1, "", color)])
    np.testing.assert_allclose(picture[260, 260], 0.55 * np.array(color), atol=1)


def test_a_shade_of_white_is_no_black():
    white = (255, 255, 255)
    assert np.min(shades([white] * 200)) >= 0 and np.max(shades([white] * 200)) <= 255
    picture = overlay(
        np.full((520, 520, 3), 255, np.uint8),
        np.repeat(np.arange(1, 131), 4)[None].repeat(520, 0).astype(np.int32),
        [(i, "", white) for i in range(1, 131)],
    )
    assert picture.min() > 100


def test_outline_runs_along_the_boundary():
    image = np.zeros((520, 520, 3), np.uint8)
    segment_map = np.ones((520, 520), np.int32)
    segment_map[:, 260:] = 2
    picture = overlay(image, segment_map, [(1, "", RED), (2, "", RED)]).astype(int).sum(-1)
    assert picture[:, 259:261].min() > picture[:, :258].max()
    assert picture[:, 259:261].min() > picture[:, 262:].max()


def test_label_is_written_inside_and_only_where_it_fits():
    image = np.zeros((520, 520, 3), np.uint8)
    for side, written in ((300, True), (12, False)):
        segment_map = np.zeros((520, 520), np.int32)
        segment_map[50 : 50 + side, 80 : 80 + side] = 1
        plain = overlay(image, segment_map, [(1, "", BLUE)])
        labelled = overlay(image, segment_map, [(1, "giraffe", BLUE)])
        changed = (plain != labelled).any(-1)
        assert changed.any() == written
        if written:
            assert not changed[segment_map == 0].any()
            rows, columns = np.nonzero(changed)
            assert np.allclose((rows.mean(), columns.mean()), (200, 230), atol=8)
            brightness = labelled[changed].astype(int).sum(-1)
            assert brightness.max() == 3 * 255 and brightness.min() < 100


def test_segment_that_is_nowhere():
    image = noise(520, 520)
    segment_map = np.zeros((520, 520), np.int32)
    np.testing.assert_array_equal(
        overlay(image, segment_map, [(4, "cat", RED)]), overlay(image, segment_map, [])
    )


def test_clusters_have_distinct_colors_that_stay():
    assignment = np.arange(256, dtype=np.int32).reshape(16, 16)
    picture = assignment_picture(assignment)
    assert picture.shape == (512, 512, 3)
    cells = picture[16::32, 16::32].reshape(256, 3)
    assert len(np.unique(cells, axis=0)) == 256
    np.testing.assert_array_equal(picture, cells.reshape(16, 16, 3).repeat(32, 0).repeat(32, 1))
    close = np.abs(cells[:16, None].astype(int) - cells[None, :16]).sum(-1) + 1000 * np.eye(16)
    assert close.min() > 40
    np.testing.assert_array_equal(assignment_picture(np.full((4, 4), 7, np.int32))[0, 0], cells[7])


def test_clusters_over_the_image():
    image = noise(97, 65)
    assignment = np.zeros((7, 5), np.int32)
    assignment[3:] = 1
    picture = assignment_picture(assignment, image)
    assert picture.shape == overlay(image, np.zeros((97, 65), np.int32), []).shape
    upper, lower = picture[:200].mean((0, 1)), picture[-200:].mean((0, 1))
    assert np.abs(upper - lower).max() > 50


def test_contact_sheet():
    rows = [
        [
            ("image", np.full((50, 100, 3), 10, np.uint8)),
            ("label", np.full((100, 80, 3), 90, np.uint8)),
        ],
        [("other", np.full((30, 30, 3), 200, np.uint8))],
    ]
    sheet = contact_sheet(rows)
    assert sheet.dtype == np.uint8 and sheet.ndim == 3
    for value, pixels in ((10, 200 * 100), (90, 80 * 100), (200, 30 * 30)):
        assert (sheet == value).all(-1).sum() >= pixels
    assert (sheet[0] == 255).all()
    untitled = contact_sheet([[("", picture) for _, picture in row] for row in rows])
    assert untitled.shape == sheet.shape and (untitled != sheet).any()


def test_a_title_is_not_written_over_the_next_one():
    grey = np.full((30, 30, 3), 200, np.uint8)
    one, two = (contact_sheet([[("sizes of image and label map", grey)] * n]) for n in (1, 2))
    titles = [(sheet[:45] < 128).any(axis=-1).sum() for sheet in (one, two)]
    assert titles[1] == 2 * titles[0] > 0


@pytest.mark.parametrize("side", [30, 400])
def test_long_title_is_shortened_and_keeps_its_ends(side):
    grey = np.full((side, side, 3), 200, np.uint8)
    long = f"frame_{'0123456789' * 24}_end.png"
    sheet = contact_sheet([[(long, grey)]])
    assert sheet.shape[1] <= max(side, 340) + 2 * 16
    for other in (long.replace("frame", "image"), long.replace("_end", "_two")):
        assert contact_sheet([[(other, grey)]]).tobytes() != sheet.tobytes()


@pytest.mark.parametrize("title", ["line\nbreak", "\x1b[31m", "\t", "\udcff", "\u202e", "", "日本"])
def test_any_title_is_one_line(title):
    grey = np.full((30, 400, 3), 200, np.uint8)
    sheet, plain = (contact_sheet([[(t, grey)]]) for t in (title, "plain"))
    assert sheet.shape == plain.shape
    np.testing.assert_array_equal(sheet[52:], plain[52:])  # below the title


def titled(text):
    return contact_sheet([[(text, np.full((30, 400, 3), 200, np.uint8))]])


def labelled(text):
    image = np.zeros((520, 520, 3), np.uint8)
    return overlay(image, np.ones((520, 520), np.int32), [(1, text, BLUE)])


@pytest.mark.parametrize("draw", [titled, labelled])
@pytest.mark.parametrize("texts", [("Straße", "Strabe"), ("日本", "本日"), ("дом", "код")])
def test_letters_beyond_ascii_are_told_apart(draw, texts):
    """They all were the box of a letter that the font lacks."""
    first, second = map(draw, texts)
    assert first.shape != second.shape or (first != second).any()


def test_letters_that_no_font_has_are_in_ascii(monkeypatch):
    visualize._writable.cache_clear()
    monkeypatch.setattr(visualize, "FONTS", ("none.ttf",))
    for text, written in (("Käfer", "Kafer"), ("日本", "\\u65e5\\u672c")):
        np.testing.assert_array_equal(titled(text), titled(written))
        np.testing.assert_array_equal(labelled(text), labelled(written))
    visualize._writable.cache_clear()


def test_letters_of_a_font_of_the_system():
    try:
        ImageFont.truetype("DejaVuSans.ttf", 22)
    except OSError:
        pytest.skip("needs the font DejaVu Sans")
    widths = [
        (titled(text)[:45] < 128).any(axis=-1).sum() for text in ("ä", "a", "ö", "\\u30a2", "ア")
    ]
    assert len(set(widths[:3])) == 3 and widths[3] == widths[4]  # it has no Japanese


def test_contact_sheet_of_thin_pictures():
    thin, wide = np.zeros((900, 1, 3), np.uint8), np.zeros((2, 900, 3), np.uint8)
    assert contact_sheet([[("thin", thin)], [("wide", wide)]]).shape[0] > 900


def test_webp_is_small_and_comes_back():
    smooth = np.stack(np.broadcast_arrays(*np.ogrid[:1000, :500], 128), -1) * (0.25, 0.5, 1)
    picture = smooth.astype(np.uint8)
    restored = decode(webp(picture, 250))
    assert restored.shape == (250, 125, 3) and len(webp(picture, 250)) < 5000
    np.testing.assert_allclose(restored[::25, ::25], picture[2::100, 2::100], atol=10)
