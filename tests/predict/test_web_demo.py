"""The page to look with: it shows what the model says, refuses politely, asks nobody outside."""

import asyncio
import base64
import contextlib
import io
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image, ImageFilter

from kmax_tf import predict
from kmax_tf.errors import InputError
from kmax_tf.predict import image_sources, web_demo

ROOT = pathlib.Path(__file__).parents[2]
RNG = np.random.default_rng(0)
# Large enough to be shown as they are, to the pixel.
NOISE = Image.fromarray(RNG.integers(0, 256, (8, 10, 3), np.uint8)).resize((640, 512))


def views_of(segmenter, path):
    return web_demo.views_of(segmenter, path.name, path.read_bytes())


def decode(url):
    """The pixels of a data URL, as a browser has them."""
    kind, content = re.fullmatch(r"data:image/(\w+);base64,(.*)", url).groups()
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert picture.format.lower() == kind
    return np.asarray(picture.convert("RGB"))


def ids_of(view):
    red, green, _ = np.moveaxis(decode(view["ids_picture"]).astype(int), -1, 0)
    return red + 256 * green


def sixteen_bit(path):
    values = RNG.integers(0, 65536, (512, 640), np.uint16)
    path.write_bytes(tf.io.encode_png(values[..., None]).numpy())


def rotated(path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    NOISE.save(path, exif=exif)


def grey(path):
    NOISE.convert("L").save(path)


def palette(path):
    NOISE.convert("P").save(path)


def cmyk(path):
    NOISE.convert("CMYK").save(path)


def transparent(path):
    NOISE.convert("RGBA").save(path)


ODD = {
    "rgb.png": NOISE.save,
    "rotated.jpg": rotated,
    "grey.png": grey,
    "16 bit.png": sixteen_bit,
    "palette.png": palette,
    "cmyk.jpg": cmyk,
    "alpha.png": transparent,
}
BAD = {
    "text.png": b"this is a text",
    "empty.png": b"",
    "cut.jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "<b>page</b>.png": b"<script>alert(1)</script>",
}


@pytest.mark.parametrize("name", ODD)
def test_views_are_what_the_model_says(segmenter, name, tmp_path):
    ODD[name](tmp_path / name)
    shown = views_of(segmenter, tmp_path / name)
    result = segmenter(str(tmp_path / name), details=True)
    height, width = (640, 512) if name == "rotated.jpg" else (512, 640)
    assert (shown["height"], shown["width"]) == (height, width) == result.panoptic_map.shape
    assert name in shown["caption"] and f"{width} x {height}" in shown["caption"]
    first, *clusters, last = shown["views"]
    photo = np.asarray(image_sources.read_image(str(tmp_path / name)), np.float32)
    assert np.abs(decode(first["picture"]) - photo).mean() < 20 and not first["items"]
    for view, ids in zip(clusters, result.assignments, strict=True):
        np.testing.assert_array_equal(ids_of(view), ids)
        assert {item["id"] for item in view["items"]} == set(np.unique(ids).tolist())
    np.testing.assert_array_equal(ids_of(last), result.panoptic_map)
    names = {category.id: category.name for category in segmenter.categories}
    items = {item["id"]: item for item in last["items"]}
    for segment in result.segments:
        item = items.pop(segment.id)
        assert item["name"] == names[segment.category_id] and item["score"] == segment.score
        assert item["share"] == pytest.approx(segment.area / (height * width))
    assert items.keys() <= {0}
    json.dumps(shown)


def test_listed_colors_are_those_of_the_picture(segmenter, tmp_path):
    NOISE.save(tmp_path / "a.png")
    for view in views_of(segmenter, tmp_path / "a.png")["views"][1:]:
        ids, picture, checked = ids_of(view), decode(view["picture"]), 0
        for item in view["items"]:
            if item["id"] and item["share"] > 0.05 and np.ptp(item["color"]) > 60:
                checked += 1
                mean = picture[ids == item["id"]].mean(0)
                assert np.corrcoef(mean, item["color"])[0, 1] > 0.7, (view["title"], item)
        assert checked > 1, view["title"]


@pytest.mark.parametrize("name, told", [("16 bit.png", True), ("rgb.png", False)])
def test_the_page_tells_which_bits_are_lost(segmenter, name, told, tmp_path):
    ODD[name](tmp_path / name)
    caption = views_of(segmenter, tmp_path / name)["caption"]
    assert ("has 16 bits, of which the upper 8 are read" in caption) == told
    assert caption.startswith(f"{name}, 640 x 512 pixels")


def test_the_page_names_the_formats_that_are_read():
    for kind in ("JPEG", "PNG", "TIFF", "WebP", "GIF", "BMP"):
        assert kind in web_demo._page("model").split("<small>")[1].split("</small>")[0]


@pytest.mark.parametrize(
    "size, shown", [((1, 1), (512, 512)), ((3000, 1500), (2048, 1024)), ((2000, 1), (2000, 1))]
)
def test_model_sees_the_whole_image_and_the_browser_one_that_it_can_show(size, shown, tmp_path):
    Image.new("RGB", size).save(tmp_path / "a.png")
    seen = []

    class Stub:
        categories = ()

        def __call__(self, image, details):
            seen.append(image.shape)
            nothing = np.zeros(image.shape[:2], np.int32)
            return predict.Segmentation(nothing, [], image, (), nothing, nothing[None])

    answer = views_of(Stub(), tmp_path / "a.png")
    assert seen == [(*size[::-1], 3)] and (answer["width"], answer["height"]) == shown
    for view in answer["views"]:
        for url in view["picture"], view["ids_picture"]:
            assert decode(url).shape == (*shown[::-1], 3)


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused_by_its_name(segmenter, name, tmp_path):
    path = tmp_path / name.replace("/", "")
    path.write_bytes(BAD[name])
    [refusal] = views_of(segmenter, path).values()
    assert refusal.startswith(path.name) and "save it as PNG" in refusal


def test_too_many_pixels_and_no_memory_are_refused(segmenter, tmp_path):
    Image.new("1", (5001, 5000)).save(tmp_path / "large.png")
    [refusal] = views_of(segmenter, tmp_path / "large.png").values()
    assert refusal == "large.png: more than 25 million pixels; scale it down"

    def out_of_memory(image, details):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating\nand so on")

    NOISE.save(tmp_path / "a.png")
    [refusal] = views_of(out_of_memory, tmp_path / "a.png").values()
    assert refusal == "a.png: OOM when allocating"


@pytest.mark.parametrize("name", ["starlette", "uvicorn"])
def test_a_missing_package_is_named_with_the_extra(monkeypatch, name):
    for package in ("starlette", "uvicorn"):  # whether they are installed here or not
        there = types.ModuleType(package) if package != name else None
        monkeypatch.setitem(sys.modules, package, there)
    line = rf"^{name}: not installed; pip install 'kmax_tf\[page\]'$"
    with pytest.raises(InputError, match=line):
        web_demo.serve(None, "model", "127.0.0.1", 0)


@pytest.fixture(scope="module")
def address(exported, default_signals):
    with serving(exported.folder, default_signals) as address:
        yield address


@contextlib.contextmanager
def serving(folder, default_signals):
    """The address of the page, of a program of its own; it is stopped as by Ctrl-C."""
    pytest.importorskip("uvicorn")
    command = [sys.executable, ROOT / "scripts/serve.py", folder, "--port=0"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, preexec_fn=default_signals, **pipes) as server:
        line = server.stdout.readline().strip()
        if not line:
            pytest.fail(server.communicate()[1])
        yield line
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=60)
    assert "Traceback" not in errors and server.returncode == 0


def ask(address, path):
    """What a page gets for a file."""
    name = urllib.parse.quote(path.name, safe="")
    request = urllib.request.Request(f"{address}/look?name={name}", path.read_bytes())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_address_is_of_this_machine_alone(address, exported):
    url = urllib.parse.urlsplit(address)
    assert url.hostname == "127.0.0.1"
    # It would answer here if it listened on all addresses.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", url.port))
    with pytest.raises(InputError, match=f"{url.port}: .*already in use.*; give another"):
        web_demo.serve(None, "model", url.hostname, url.port)
    for host in ("a..b", "ä..b"):
        with pytest.raises(InputError, match=f"^{host}:0: .*; give another --host"):
            web_demo.serve(None, "model", host, 0)


@pytest.mark.parametrize("place", ["viewer.js", "../web_demo.py", "file=/etc/hostname", "look"])
def test_nothing_else_is_given_away(address, place):
    with pytest.raises(urllib.error.HTTPError, match="40[45]"):
        urllib.request.urlopen(f"{address}/{place}")


def test_a_name_is_only_a_name(address, tmp_path):
    """The server opens no file, and the page shows the name as text."""
    (tmp_path / "a.png").write_bytes(b"this is a text")
    for name in ("/etc/hostname", "https://example.com/a.png", "<b>a</b>.png"):
        place = f"{address}/look?name={urllib.parse.quote(name, safe='')}"
        with urllib.request.urlopen(place, b"this is a text") as answer:
            assert json.load(answer)["refusal"].startswith(f"{name}: not an image that")
    [page] = re.findall("<title>(.*)</title>", web_demo._page("<b>a</b>"))
    assert page == "&lt;b&gt;a&lt;/b&gt;"


def test_a_person_who_leaves_disturbs_nobody(address, tmp_path):
    url = urllib.parse.urlsplit(address)
    for _ in range(3):
        with socket.create_connection((url.hostname, url.port)) as left:
            left.sendall(b"POST /look HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\npart")
    NOISE.save(tmp_path / "a.png")
    assert ask(address, tmp_path / "a.png")["width"] == 640


def test_what_waits_beyond_the_limit_is_refused(monkeypatch):
    requests = pytest.importorskip("starlette.requests")
    monkeypatch.setattr(web_demo, "MOST_WAITING", 0)

    async def receive():
        return {"type": "http.request", "body": b"image", "more_body": False}

    scope = {"type": "http", "method": "POST", "query_string": b"name=a.png", "headers": []}
    server = web_demo._Server(None, "model")
    answer = asyncio.run(server.look(requests.Request(scope, receive)))
    assert answer.status_code == 503
    assert json.loads(answer.body) == {"refusal": "a.png: 0 images wait already; try again later"}


def test_the_server_ends_during_a_prediction(exported, default_signals, tmp_path):
    """With an answer, and without a traceback, which `serving` looks for."""
    NOISE.resize((2500, 2500)).save(tmp_path / "large.png")
    with ThreadPoolExecutor(2) as people, serving(exported.folder, default_signals) as address:
        asked = [people.submit(ask, address, tmp_path / "large.png") for _ in range(2)]
        time.sleep(1)
    for future in asked:
        with contextlib.suppress(OSError):  # the connection may be gone
            assert future.result().keys() & {"refusal", "views"}


@pytest.mark.slow
def test_twenty_requests_at_once(address, segmenter, tmp_path):
    paths = []
    for number in range(20):
        name = [*ODD, *list(BAD)[:3]][number % 10]
        paths.append(tmp_path / f"{number:02} {name}")
        if name in ODD:
            ODD[name](paths[-1])
        else:
            paths[-1].write_bytes(BAD[name])
    with ThreadPoolExecutor(20) as people:
        answers = list(people.map(lambda path: ask(address, path), paths))
    refused = [path.name[3:] for path, answer in zip(paths, answers) if "refusal" in answer]
    assert sorted(refused) == sorted([*BAD][:3] * 2)
    for path, answer in zip(paths, answers):
        if "refusal" in answer:
            assert answer["refusal"].startswith(path.name)
        else:
            expected = segmenter(str(path)).panoptic_map
            np.testing.assert_array_equal(ids_of(answer["views"][-1]), expected)


@pytest.mark.slow
def test_fifty_megabytes_are_taken_and_seventy_are_not(address, tmp_path):
    pixels = RNG.integers(0, 256, (4200, 4200, 3), np.uint8)
    tf.io.write_file(f"{tmp_path}/50 MB.png", tf.io.encode_png(pixels, compression=0))
    assert 50e6 < os.path.getsize(tmp_path / "50 MB.png") < web_demo.LARGEST_FILE
    assert ask(address, tmp_path / "50 MB.png")["width"] == 2048
    (tmp_path / "70 MB.png").write_bytes(bytes(70_000_000))
    with pytest.raises(urllib.error.HTTPError, match="413") as refused:
        ask(address, tmp_path / "70 MB.png")
    assert json.load(refused.value)["refusal"] == "70 MB.png: more than 64 MB; scale it down"
    NOISE.save(tmp_path / "a.png")
    assert ask(address, tmp_path / "a.png")["width"] == 640


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.add_argument(f"--user-data-dir={tmp_path}/chromium")
    options.add_argument("--window-size=1280,1000")
    words = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync"
    words += " disable-background-networking disable-component-update disable-dev-shm-usage"
    for word in words.split():
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as browser:
        browser.implicitly_wait(60)
        yield browser


def drop(browser, path, words):
    """Gives the page a file, and waits for what it says of it."""
    browser.find_element("css selector", "input[type=file]").send_keys(str(path))
    browser.find_element("xpath", f"//*[@class='viewer']/p[contains(., '{words}')]")


def choose(browser, title, item):
    """Goes to a step, and waits for an item of its list."""
    browser.find_element("xpath", f"//*[@class='steps']/label[.='{title}']").click()
    browser.find_element("xpath", f"//*[@class='items']//span[.='{item['name']}']")


def point(browser, x, y):
    """Moves the mouse to a pixel of the picture; returns what is said beside it."""
    canvas = browser.find_element("css selector", ".viewer canvas")
    sides = [canvas.rect[side] for side in ("width", "height")]
    shown = [int(canvas.get_attribute(side)) for side in ("width", "height")]
    place = [(i + 0.5) * a / b - a / 2 for i, a, b in zip((x, y), sides, shown)]
    act(browser).move_to_element_with_offset(canvas, *map(round, place)).perform()
    return browser.find_element("css selector", ".viewer .tip").text


def act(browser):
    from selenium.webdriver import ActionChains

    return ActionChains(browser)


def color(browser, x, y):
    script = "return [...document.querySelector('.viewer canvas').getContext('2d')"
    script += ".getImageData(...arguments, 1, 1).data].slice(0, 3)"
    return browser.execute_script(script, int(x), int(y))


def inside(ids, i):
    """A pixel (x, y) whose neighbors, too, are of the item."""
    mask = Image.fromarray(np.uint8(255) * (ids == i)).filter(ImageFilter.MinFilter(9))
    places = np.argwhere(np.asarray(mask))
    y, x = places[len(places) // 2]
    return x, y


@pytest.mark.slow
def test_person_looks_at_an_image(browser, address, segmenter, tmp_path):
    NOISE.save(tmp_path / "photo.png")
    photo, *clusters, segments = views_of(segmenter, tmp_path / "photo.png")["views"]
    browser.get(address)
    drop(browser, tmp_path / "photo.png", "photo.png, 640 x 512 pixels")
    steps = browser.find_elements("css selector", ".steps label")
    assert [step.text for step in steps] == ["image", "decoder 1", "segments"]

    for view in (segments, *clusters):
        item = next(item for item in view["items"] if item["share"] > 0.05 and item["id"])
        choose(browser, view["title"], item)
        x, y = inside(ids_of(view), item["id"])
        on, off = (decode(v["picture"])[y, x].tolist() for v in (view, photo))
        assert np.abs(np.subtract(on, off)).max() > 20  # else nothing is to be seen

        said = point(browser, x, y)
        assert item["name"] in said and f"{100 * item['share']:.1f} %" in said
        assert item["score"] is None or f"score {item['score']:.2f}" in said
        assert color(browser, x, y) == pytest.approx(on, abs=4)
        act(browser).click().perform()
        assert color(browser, x, y) == pytest.approx(off, abs=4)
        browser.find_element("css selector", ".items .pointed input").click()
        assert color(browser, x, y) == pytest.approx(on, abs=4)
        for button, expected in ("all off", off), ("all on", on):
            browser.find_element("xpath", f"//button[.='{button}']").click()
            assert color(browser, x, y) == pytest.approx(expected, abs=4)

    (tmp_path / "text.png").write_text("this is a text")
    drop(browser, tmp_path / "text.png", "text.png: not an image that")
    ODD["rotated.jpg"](tmp_path / "rotated.jpg")
    drop(browser, tmp_path / "rotated.jpg", "rotated.jpg, 512 x 640 pixels")

    assert [log for log in browser.get_log("browser") if log["source"] == "javascript"] == []
    events = [json.loads(log["message"])["message"] for log in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if "request" in e["params"]]
    own = ("data", "chrome")  # of the browser itself
    hosts = {u.netloc for u in map(urllib.parse.urlsplit, asked) if not u.scheme.startswith(own)}
    assert hosts == {urllib.parse.urlsplit(address).netloc}


@pytest.mark.slow
def test_a_person_looks_at_an_image_in_tiles_after_one_in_decoders(
    browser, exported, default_signals, tmp_path
):
    """It has no view of the one that was shown, so it begins with its segments."""
    tiled, size = tmp_path / "tiled", exported.experiment.evaluation_size
    shutil.copytree(exported.folder, tiled)
    described = json.loads((tiled / "categories.json").read_text())
    described["tiles"] = {"size": size, "scale": 1.0, "overlap": 16}
    (tiled / "categories.json").write_text(json.dumps(described))
    NOISE.resize(size).save(tmp_path / "small.png")
    NOISE.save(tmp_path / "large.png")
    with serving(tiled, default_signals) as address:
        browser.get(address)
        for name, begins, others in (
            ("small.png", "segments", ["image", "decoder 1"]),
            ("large.png", "segments", ["image"]),
            ("small.png", "segments", ["image", "decoder 1"]),
        ):
            drop(browser, tmp_path / name, f"{name}, ")
            browser.find_element("css selector", ".items input")
            steps = browser.find_elements("css selector", ".steps label")
            assert [step.text for step in steps] == [*others, "segments"]
            chosen = browser.find_element("css selector", ".steps label:has(:checked)")
            assert chosen.text == begins
            if len(others) > 1:
                steps[1].click()
        assert not [log for log in browser.get_log("browser") if log["source"] == "javascript"]
