"""Archives from folders, and from a server that truncates and alters some."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import threading
import zlib

import pytest

pytest.importorskip("pooch")

from experiments.common.data.archives import Archive, fetch, read


def md5(content):
    return f"md5:{hashlib.md5(content).hexdigest()}"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a dictionary of files; may promise more bytes than it sends."""

    def __init__(self, files, promised, asked, *args):
        self.files, self.promised, self.asked = files, promised, asked
        super().__init__(*args)

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        self.asked.append(self.path)
        if name not in self.files:
            return self.send_error(404)
        content = self.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + self.promised))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        del arguments


@contextlib.contextmanager
def serving(files, promised=0):
    """Yields (address, list of paths asked for) of a server of ``files``."""
    asked = []
    handler = functools.partial(Handler, files, promised, asked)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/files/", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def names_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


CONTENT = b"an archive of some length" * 40


def test_a_good_archive_is_fetched_once(tmp_path):
    with serving({"a.gz": CONTENT}) as (address, asked):
        archive = Archive("a.gz", md5(CONTENT), (address,))
        for _ in range(2):
            assert fetch(archive, tmp_path / "new").read_bytes() == CONTENT
    assert len(asked) == 1
    assert names_in(tmp_path / "new") == ["a.gz"]


@pytest.mark.parametrize(
    ("served", "promised", "reason"),
    [
        ({"a.gz": CONTENT[:100]}, len(CONTENT) - 100, "IncompleteRead"),
        ({"a.gz": CONTENT[:100]}, 0, "does not match the known hash"),
        ({"a.gz": CONTENT[:-1] + b"x"}, 0, "does not match the known hash"),
        ({"a.gz": b"<html>Not here</html>"}, 0, "does not match the known hash"),
        ({}, 0, "404"),
    ],
    ids=["connection lost", "truncated", "altered", "a web page", "missing"],
)
def test_a_bad_archive_is_refused_and_nothing_is_left(
    served, promised, reason, tmp_path
):
    with serving(served, promised) as (address, _):
        archive = Archive("a.gz", md5(CONTENT), (address,))
        with pytest.raises(ConnectionError, match=reason) as error:
            fetch(archive, tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "JAXMEDIAN_CACHE" in str(error.value)
    assert names_in(tmp_path) == []


def test_without_a_network_the_error_says_what_to_do(tmp_path):
    with serving({}) as (address, _):
        pass  # the port is closed again
    archive = Archive("a.gz", md5(CONTENT), (address,))
    with pytest.raises(ConnectionError) as error:
        fetch(archive, tmp_path)
    message = str(error.value)
    assert f"put it into {tmp_path}" in message
    assert f"{address}a.gz" in message
    assert "mnist5k" in message
    assert names_in(tmp_path) == []
    (tmp_path / "a.gz").write_bytes(CONTENT)  # by hand, as it says
    assert fetch(archive, tmp_path).read_bytes() == CONTENT


def test_the_next_mirror_is_tried(tmp_path):
    with (
        serving({"a.gz": b"wrong"}) as (bad, _),
        serving({"a.gz": CONTENT}) as (
            good,
            _,
        ),
    ):
        archive = Archive("a.gz", md5(CONTENT), (bad, good))
        assert fetch(archive, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("damage", [CONTENT[:50], b"", CONTENT + b"more"])
def test_a_damaged_cache_is_fetched_again(damage, tmp_path):
    (tmp_path / "a.gz").write_bytes(damage)
    with serving({"a.gz": CONTENT}) as (address, asked):
        archive = Archive("a.gz", md5(CONTENT), (address,))
        assert fetch(archive, tmp_path).read_bytes() == CONTENT
    assert len(asked) == 1
    assert names_in(tmp_path) == ["a.gz"]


def test_an_interrupted_download_leaves_nothing(tmp_path, monkeypatch):
    import shutil

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "move", interrupted)
    with serving({"a.gz": CONTENT}) as (address, _):
        archive = Archive("a.gz", md5(CONTENT), (address,))
        with pytest.raises(KeyboardInterrupt):
            fetch(archive, tmp_path)
    assert names_in(tmp_path) == []


def test_missing_pooch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxmedian\[experiments\]'"):
        fetch(Archive("a.gz", md5(CONTENT), ()), tmp_path)


# --- copies that are known by what they hold ------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMEDIAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def archive_of(content, *mirrors):
    return Archive(
        "a.gz",
        md5(gzip.compress(content, mtime=0)),
        mirrors,
        hashlib.sha256(content).hexdigest(),
    )


def recompressed(content):
    """Another container of the same content: no checksum of it is published."""
    compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
    return compressor.compress(content) + compressor.flush()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


COPIES = {"a.gz": recompressed(CONTENT), "a": CONTENT}


@pytest.mark.parametrize("copy", COPIES, ids=["recompressed", "not compressed"])
@pytest.mark.parametrize("place", ["mine", "mine/toy", "cache/toy", "system"])
def test_any_copy_of_the_content_is_welcome(place, copy, tmp_path, cache):
    put(tmp_path / place / copy, COPIES[copy])
    found = read(archive_of(CONTENT), "toy", tmp_path / "mine", [tmp_path / "system"])
    assert found == CONTENT
    assert not cache.exists() or place == "cache/toy"  # nothing was fetched


def test_places_are_searched_in_order(tmp_path, cache, monkeypatch):
    places = {"mine": tmp_path / "mine", "cache": cache / "toy"}
    for path in (*places.values(), tmp_path / "system"):
        put(path / "a", b"altered")
    with pytest.raises(ValueError, match="mine/a is altered"):
        read(archive_of(CONTENT), "toy", tmp_path / "mine", [tmp_path / "system"])
    with pytest.raises(ConnectionError) as error:
        read(archive_of(CONTENT), "toy", None, [tmp_path / "system"])
    cached, system = str(error.value).splitlines()[1:3]
    assert "cache/toy/a is altered" in cached
    assert "system/a is altered" in system
    with serving({"a.gz": gzip.compress(CONTENT, mtime=0)}) as (address, asked):
        archive = archive_of(CONTENT, address)
        for _ in range(2):
            assert read(archive, "toy", None, [tmp_path / "system"]) == CONTENT
    assert len(asked) == 1
    put(cache / "toy" / "a.gz", b"altered")
    put(tmp_path / "system" / "a", CONTENT)
    assert read(archive_of(CONTENT), "toy", None, [tmp_path / "system"]) == CONTENT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(CONTENT[:-1] + b"x"), "is altered, or belongs to another data"),
        (gzip.compress(CONTENT)[:-9], "is damaged"),
        (b"\x1f\x8b" + CONTENT, "is damaged"),
        (b"", "is altered"),
    ],
    ids=["altered", "truncated", "no gzip", "empty"],
)
def test_wrong_copies_are_refused_by_name(content, message, tmp_path, cache):
    put(tmp_path / "a.gz", content)
    with pytest.raises(ValueError, match=message) as error:
        read(archive_of(CONTENT), "toy", tmp_path)
    assert str(tmp_path / "a.gz") in str(error.value)


def test_without_a_known_content_a_copy_is_the_publishers_to_the_bit(tmp_path, cache):
    original = gzip.compress(CONTENT, mtime=0)
    archive = archive_of(CONTENT)._replace(content=None)
    put(tmp_path / "a.gz", original)
    assert read(archive, "toy", tmp_path) == CONTENT
    put(tmp_path / "a.gz", recompressed(CONTENT))
    with pytest.raises(ValueError, match="is altered"):
        read(archive, "toy", tmp_path)
