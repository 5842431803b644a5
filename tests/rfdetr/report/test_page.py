"""The page: whole, without requests, with everything escaped, for runs of all ages, one or several; and served."""

import re
import shutil
import subprocess
import threading
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from rfdetr.errors import InputError
from rfdetr.report.page import make_page, write_report
from rfdetr.report.read import open_runs
from rfdetr.report.serve import ReportServer

THERE, FAR = (0, 0, 100, 100), (200, 200, 300, 290)
NASTY = ["<script>alert(1)</script>", "\"'&$x$ ${y}", "</td></table>"]
DEFAULTS = {"train": {"epochs": 100, "seed": 42}, "model": {"variant": "nano"}}
CHROMIUM = shutil.which("chromium")


def page_of(*folders, **options) -> str:
    return make_page(open_runs(folders), DEFAULTS, **options)


@pytest.fixture
def images(image):
    return [image([(THERE, 0, 0.9), (FAR, 1, 0.6), (FAR, 0, 0.3)], [(THERE, 0)]), image([], [(THERE, 1)]), image()]


def test_a_page_is_whole_and_asks_nobody(make_run, images, parse):
    text = page_of(make_run("run", images=images))
    page = parse(text)
    addresses = [value for _, given in page.elements for name, value in given.items() if name in ("href", "src")]
    assert addresses and all(address.startswith(("#", "data:")) for address in addresses)
    assert not re.search(r"https?://|url\(|@import", text)
    assert page.row("all objects") == ["0.400", "2", "1", "1", "1", "0.500", "0.500", "0.500"]
    assert page.row("cat") == ["0.250", "1", "1", "0", "0", "1.000", "1.000", "1.000"]
    assert page.row("background")[0] == "1" and page.row("missed")[0] == "1"
    assert page.row("small") == ["-", "0", "0", "-"] and page.row("large") == ["-", "2", "1", "0.500"]  # -1 is never shown
    assert page.row("train.epochs") == ["2", "100"]
    assert {"aria-sort": "none", "scope": "col", "class": "number"} in [given for tag, given in page.elements if tag == "th"]


def test_values_that_hooks_log_and_further_sets_have_curves(make_run):
    metrics = {f"{name}/{key}": 0.5 for name in ("val", "night") for key in ("mAP_50_95", "mAP_small")}
    text = page_of(make_run("run", lines=[{"step": 2, "epoch": 0, "mine/weight": 3.0}, {"step": 4, "epoch": 1, **metrics}]))
    assert "mine/weight over epochs" in text and "night/mAP_50_95 over epochs" in text and "night/mAP_small" not in text


def test_names_cannot_break_the_page(make_run, images, parse):
    """Not those of classes, files and folders, nor what settings hold."""
    folder = make_run("a <b> & 'c'", NASTY, images, metrics={"AP/" + NASTY[1]: 0.5}, train={"note": "</script><img src=x>"})
    page = parse(page_of(folder))
    tags = [tag for tag, _ in page.elements]
    assert not {"img", "i", "y"} & set(tags) and tags.count("script") == 2
    assert page.row(NASTY[1])[0] == "0.500" and page.row(NASTY[0])[1] == "1" and page.row(NASTY[2])[1] == "0"
    assert "<i>0</i>.jpg" in page.texts and any("a <b> & 'c'" in text for text in page.texts)


@pytest.mark.parametrize("count", [1, 300])
def test_any_number_of_classes(make_run, images, parse, count):
    page = parse(page_of(make_run("run", [f"class {number}" for number in range(count)], images)))
    assert sum("data-class" in given for tag, given in page.elements) == count + 1


def test_nothing_found_and_nothing_there(make_run, image, parse):
    for place, found in enumerate(([image([], [(THERE, 0)])], [image([(THERE, 0, 0.9)])], [image()], [])):
        page = parse(page_of(make_run(f"run{place}", images=found)))
        assert page.row("all objects")[1] == str(sum(len(one.targets) for one in found))


def test_an_older_run_has_a_page_that_says_what_is_missing(make_run, parse):
    lines = [{"step": 3, "epoch": 0, "train/loss": None}, {"step": 3, "epoch": 1, "val/mAP_50_95": 0.1, "val/ema_mAP_50_95": 0.3,
                                                           "val/ema_AP/cat": 0.3, "val/AP/cat": 0.1, "val/ema_mAP_small": -1.0}]
    page = parse(page_of(make_run("run", lines=lines)))
    assert page.row("mAP 50:95") == ["0.300"] and page.row("cat") == ["0.300"] and page.row("dog") == ["-"]
    assert page.row("best weights") == ["average of the weights (EMA), epoch 1"]
    assert any("no detections.npz" in text for text in page.texts)


def test_a_run_that_is_being_written(make_run, parse):
    """Nothing but the beginning of a line, then lines of the first epoch; broken files are named."""
    folder = make_run("run", lines=[])
    for name in ("config.yaml", "label_map.json"):
        (folder / name).unlink()
    (folder / "metrics.jsonl").write_text('{"step": 4, "ep')
    assert any("No values" in text for text in parse(page_of(folder)).texts)
    lines = ('{"step": 4, "epoch": 0, "train/loss": 3.5}', '{"step": 8, "epoch": 0, "train/loss": 2.5}', '{"st')
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    (folder / "detections.npz").write_bytes(b"PK\x03\x04 broken")
    (folder / "results.json").write_text("{")
    page = parse(page_of(folder))
    assert "2.500" in page.texts and {"results.json cannot be read (JSONDecodeError)"} <= set(page.texts)
    assert any(text.startswith("detections.npz cannot be read") for text in page.texts)


def test_several_runs_side_by_side(make_run, images, parse, tmp_path, monkeypatch):
    first, second = make_run("a", images=images), make_run("b", metrics={"mAP_50_95": 0.7}, train={"epochs": 3, "seed": 42})
    monkeypatch.chdir(tmp_path)
    assert write_report([first, second], defaults=DEFAULTS).name == "report.html"
    page = parse((tmp_path / "report.html").read_text())
    assert page.row("mAP 50:95") == ["0.400", "0.700"] and page.row("cat") == ["0.250", "0.250"]
    assert page.row("train.epochs") == ["2", "3"]
    assert page.row("train.seed") == ["42", "42"]  # among all settings: value and default
    ids = [given["id"] for _, given in page.elements if "id" in given]
    assert len(ids) == len(set(ids))
    with pytest.raises(InputError, match="nothing: is no folder; name the folder of a run"):
        write_report([first, tmp_path / "nothing"], defaults=DEFAULTS)


def test_it_is_served_to_this_machine_and_made_anew(make_run, images):
    folder = make_run("run", images=images)
    with ReportServer([folder], 0, defaults=DEFAULTS) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        first, state = (urlopen(address + path).read().decode() for path in ("/", "/state"))
        assert f'data-live="{state}"' in first and "9.25" not in first
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 8, "epoch": 1, "train/loss": 9.25}\n')
        assert urlopen(address + "/state").read().decode() != state
        assert "9.250" in urlopen(address + "/").read().decode()
        for path, host, code in (("/etc", None, 404), ("/", "evil.example:80", 403)):
            with pytest.raises(HTTPError) as error:
                urlopen(Request(address + path, headers={"Host": host} if host else {}))
            assert error.value.code == code
        with pytest.raises(InputError, match="--port .* cannot be used"):
            ReportServer([folder], server.server_address[1], defaults=DEFAULTS)
        server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_a_browser_moves_the_threshold_to_the_same_numbers(make_run, images, parse, tmp_path):
    """The script writes all counts anew when the page is loaded: those of Python have to be the same.

    It shows the labels that have room, and the classes fit a narrow window.
    """
    path = write_report([make_run("run", images=images)], defaults=DEFAULTS)
    made = path.read_text()
    path.write_text(made + "<script>const table = document.querySelector('.evaluated .scroll');"
                    "document.title = `${table.scrollWidth} of ${table.clientWidth}`</script>")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
               "--disable-sync", "--disable-component-update", f"--user-data-dir={tmp_path / 'browser'}",
               "--virtual-time-budget=2000", "--window-size=390,900", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *options, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    shown = done.stdout
    width, _, room = re.search("<title>(.*)</title>", shown)[1].partition(" of ")
    assert int(width) <= int(room) < 500
    labels = re.findall(r'</rect><text x="[^"]*" y="[^"]*"( class="hidden")?[^>]*>([^<]*)</text>', shown)
    assert [text for hidden, text in labels if not hidden] == ["cat", "cat 0.90", "dog 0.60, background", "dog"]
    assert [text for hidden, text in labels if hidden] == ["cat 0.30, background"], "below the threshold"
    assert "1 right, 1 background, 0 not found" in shown
    cells = r'<tr data-(?:class|error|size)="-?\d+">.*?</tr>'
    assert re.findall(cells, shown) == re.findall(cells, made) != []
