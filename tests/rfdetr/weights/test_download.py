"""Published weights by name, from a real HTTP server on the loopback interface."""

import hashlib
import http.server
import re
import socket
import threading

import pytest

from rfdetr.config import VARIANTS
from rfdetr.errors import InputError
from rfdetr.weights import download, find_weights, published_name, read_checkpoint

NAME = "rf-detr-nano.pth"
CONTENT = bytes(range(256)) * 2000  # 512,000 bytes


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one file, with Range; what goes wrong is set on the server."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        if self.path != server.path:
            return self.send_error(404)
        start = int(self.headers["Range"][6:-1]) if self.headers.get("Range") and server.ranges else 0
        if start >= len(server.content):
            return self.send_error(416)
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "_WAIT", 0.01)
    monkeypatch.setitem(download.PUBLISHED, NAME, download.Published("nano_coco/best.pth", hashlib.md5(CONTENT).hexdigest()))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.path = CONTENT, "/files/nano_coco/best.pth"
        server.requests, server.cuts, server.ranges = [], [], True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def get(server, tmp_path, monkeypatch):
    monkeypatch.setenv("RFDETR_WEIGHTS_URL", f"http://127.0.0.1:{server.server_port}/files")
    monkeypatch.setenv("RF_HOME", str(tmp_path / "cache"))
    return lambda: find_weights(NAME)


def test_downloaded_once(server, get, tmp_path):
    path = get()
    assert path == tmp_path / "cache" / NAME and path.read_bytes() == CONTENT
    assert get() == path
    assert server.requests == [(server.path, None)]
    assert not list(path.parent.glob("*.part"))


def test_a_cut_connection_is_resumed(server, get):
    server.cuts = [100_000, 50_000]
    assert get().read_bytes() == CONTENT
    assert [part for _, part in server.requests] == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_run_goes_on(server, get, tmp_path):
    server.cuts = [100_000, 0]  # the second connection brings nothing
    with pytest.raises(InputError, match=r"100,000 bytes are kept"):
        get()
    assert not (tmp_path / "cache" / NAME).exists()
    assert get().read_bytes() == CONTENT
    assert server.requests[-1] == (server.path, "bytes=100000-")


def test_a_server_that_cannot_resume(server, get):
    server.cuts, server.ranges = [100_000], False
    assert get().read_bytes() == CONTENT


def test_a_complete_part_is_used(server, get, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"{NAME}.part").write_bytes(CONTENT)
    assert get().read_bytes() == CONTENT


def test_a_part_of_another_file_is_started_again(server, get, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"{NAME}.part").write_bytes(b"x" * 1000)
    assert get().read_bytes() == CONTENT
    assert [part for _, part in server.requests] == ["bytes=1000-", None]


def test_a_wrong_checksum(server, get, tmp_path):
    server.content = b"?" + CONTENT[1:]
    expected = hashlib.md5(CONTENT).hexdigest()
    with pytest.raises(InputError, match=rf"{NAME}: what came from http\S+ has the md5 \w+, expected {expected}"):
        get()
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.name.startswith("rf")] == []


def test_not_there(server, get):
    server.path = "/elsewhere"
    with pytest.raises(InputError, match="HTTP 404"):
        get()


def test_no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RFDETR_WEIGHTS_URL", url)
    monkeypatch.setenv("RF_HOME", str(tmp_path))
    with pytest.raises(InputError) as caught:
        find_weights(published_name("nano"))
    published = download.PUBLISHED[NAME]
    for part in (NAME, f"{url}/{published.path}", str(tmp_path / NAME), published.md5, "by hand"):
        assert part in str(caught.value)


def test_a_users_file_comes_first_and_is_never_changed(server, get, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).write_bytes(b"mine")
    assert get().read_bytes() == b"mine" and server.requests == []
    (tmp_path / NAME).rename(tmp_path / "other")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / NAME).write_bytes(b"mine")
    with pytest.raises(InputError, match=r"has the md5 .* It is left as it is"):
        get()
    assert (tmp_path / "cache" / NAME).read_bytes() == b"mine" and server.requests == []


def test_two_at_once_download_once(server, get):
    threads = [threading.Thread(target=get) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1 and get().read_bytes() == CONTENT


def test_environment(server, monkeypatch, tmp_path):
    monkeypatch.setenv("RFDETR_WEIGHTS_URL", f"http://127.0.0.1:{server.server_port}/files/")
    monkeypatch.setenv("RF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert find_weights(NAME) == tmp_path / "home" / NAME
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "home" / NAME))):
        read_checkpoint(NAME)  # found by its name, and then not a checkpoint
    monkeypatch.delenv("RF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("sys.platform", "linux")
    assert download.cache_home() == tmp_path / "xdg" / "rfdetr"


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("RFDETR_WEIGHTS_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("RF_HOME", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="cannot write to the cache folder.*RF_HOME"):
        find_weights(NAME)


@pytest.mark.parametrize("name", ["rf-detr-xlarge.pth", "rf-detr-xxlarge.pth", "some/folder/rf-detr-xlarge.pth"])
def test_restricted_weights_are_refused_with_the_licence(name):
    with pytest.raises(InputError, match="Platform Model License"):
        find_weights(name)


def test_other_names():
    with pytest.raises(InputError, match="keypoint"):
        find_weights("rf-detr-keypoint-preview-xlarge.pth")
    with pytest.raises(InputError, match=r"did you mean rf-detr-small\.pth\?"):
        find_weights("rf-detr-smal.pth")
    with pytest.raises(InputError, match=r"folder/rf-detr-nano\.pth: no such file"):
        read_checkpoint("folder/rf-detr-nano.pth")


def test_published_weights_of_a_variant():
    names = {variant: published_name(variant) for variant in VARIANTS}
    assert names["large"] == "rf-detr-large-2026.pth" and names["large_deprecated"] == "rf-detr-large.pth"
    assert names["seg_2xlarge"] == "rf-detr-seg-xxlarge.pt" and names["seg_preview"] == "rf-detr-seg-preview.pt"
    assert [variant for variant, name in names.items() if name is None] == ["pico", "pico_seg"]
    published = {name for name in names.values() if name}
    assert set(download.PUBLISHED) - published == {"rf-detr-base-o365.pth", "rf-detr-base-2.pth"}
    assert len(published) == len(names) - 2
