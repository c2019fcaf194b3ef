"""The table of data sets, where they lie here, and what is verified of them."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from test_download import Site, content, serving

import zoo.data.download as downloads
import zoo.data.store as store
from zoo.config import parse
from zoo.data.sources import UNSTATED, Digest, Source, SourceFile, get_file, get_source, sources
from zoo.data.store import data_folders, fetch, fetched_folder, find_file, locate, recorded
from zoo.errors import ConfigError, IntegrityError, UnknownNameError
from zoo.licences import LICENCES

NAMES = ("md17", "md17-ccsd", "rmd17", "md22", "spice-1", "spice-2", "spice-mace-off", "mptrj-json", "mptrj-extxyz")
MD22 = ("ac-ala3-nhme", "dha", "stachyose", "at-at", "at-at-cg-cg", "buckyball-catcher", "double-walled-nanotube")


@pytest.fixture(autouse=True)
def no_folders(monkeypatch):
    monkeypatch.delenv("ZOO_DATA", raising=False)


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSES", ())
    with serving() as one:
        yield one


def small(digest: Digest | None = None, url: str = "http://127.0.0.1:1/a.npz", **more: object) -> Source:
    """A data set of one file on disk, which two keys share."""
    file = SourceFile(name="a.npz", urls=(url,), digest=digest, **more)
    facts = {"title": "one", "format": "sgdml", "licence": "MIT", "licence_url": "http://127.0.0.1:1/"}
    facts |= {"citation": "nobody", "level_of_theory": "none", "units": "eV, Å"}
    other = file.model_copy(update={"members": "*.npz"})
    return Source.model_validate({"name": "small", **facts, "files": {"one": file, "two": other}})


def digest(body: bytes, seen: str) -> Digest:
    return Digest.model_validate({"algorithm": "md5", "hex": hashlib.md5(body).hexdigest(), "seen": seen})


def put(folder: Path, body: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.npz").write_bytes(body)
    return folder / "a.npz"


def test_the_table_has_the_data_sets_that_recipes_name():
    assert tuple(sources()) == NAMES
    assert tuple(get_source("md22").files) == MD22
    assert len(get_source("md17").files) == 8
    assert len(get_source("rmd17").files) == 10
    assert tuple(get_source("spice-mace-off").files) == ("train", "test")


@pytest.mark.parametrize("name", NAMES)
def test_each_entry_is_whole(name):
    source = get_source(name)
    assert source.licence in (*LICENCES, UNSTATED)
    assert source.licence_note or source.licence != UNSTATED
    assert len(source.citation) > 80
    for key, file in source.files.items():
        assert len(set(file.urls)) == len(file.urls), key
        packed = file.name.endswith((".zip", ".tar.gz", ".tar.bz2"))
        assert packed == (file.members is not None), key
        assert all(
            Path(url).suffix in ("", Path(file.name).suffix) or "?" in url or "files/" in url for url in file.urls
        )


def test_what_is_published_is_as_it_was_written_down():
    assert get_file(get_source("md22"), "buckyball-catcher").frames == 6102
    assert get_file(get_source("md22"), "double-walled-nanotube").atoms == 370
    extxyz = get_file(get_source("mptrj-extxyz"), "2024-09-03")
    assert (extxyz.bytes, extxyz.binding_bytes) == (1_521_713_089, None)
    mptrj = get_file(get_source("mptrj-json"), "2022.9")
    assert mptrj.bytes == 12_188_168_685
    seen = {
        name: {file.digest.seen if file.digest else None for file in get_source(name).files.values()} for name in NAMES
    }
    assert {name for name in NAMES if seen[name] == {"index"}} == {"rmd17", "mptrj-json"}
    assert {name for name in NAMES if seen[name] == {"publisher"}} == {"spice-1", "spice-2", "mptrj-extxyz"}
    assert all(file.browser for file in get_source("spice-mace-off").files.values())


@pytest.mark.parametrize("name", ["md17", "md17-ccsd", "md22"])
def test_https_comes_before_http(name):
    for file in get_source(name).files.values():
        assert [url.partition("://")[0] for url in file.urls] == ["https", "http"]
        assert all(url.endswith(f"/{file.name}") for url in file.urls)


def test_members_of_an_archive_share_its_file_on_disk():
    assert list(get_source("rmd17").on_disk) == ["aspirin"]
    assert list(get_source("md17-ccsd").on_disk) == [f"{name}-train" for name in _CCSD]
    patterns = [file.members for file in get_source("rmd17").files.values()]
    assert len(set(patterns)) == 10


_CCSD = ("aspirin", "benzene", "ethanol", "malonaldehyde", "toluene")


def test_an_unknown_name_or_key_comes_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"^'md23' is no data set of zoo; nearest: md22, md17"):
        get_source("md23")
    with pytest.raises(UnknownNameError, match=r"^md22 has no file 'bukyball-catcher'; nearest: buckyball-catcher$"):
        get_file(get_source("md22"), "bukyball-catcher")
    with pytest.raises(UnknownNameError, match=r"^spice-mace-off has no file 'x'; known: train, test$"):
        find_file("spice-mace-off", "x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"licence": "GPL"}, "licence 'GPL' is unknown; known are .*LicenseRef-unstated"),
        ({"format": "pickle"}, "'format': Input should be"),
        ({"files": {}}, "at least 1 item"),
        ({"price": 3}, "unknown key 'price'"),
        ({"files.one.name": "../a"}, "should match pattern"),
        ({"files.one.urls": ["ftp://x/a"]}, "'ftp://x/a' is no http or https address"),
        ({"files.one.urls": []}, "at least 1 item"),
        ({"files.one.bytes": 0}, "greater than 0"),
        ({"files.one.bytes_seen": "index"}, "a.npz: bytes_seen without bytes"),
        ({"files.one.bytes": 7}, "file two is a.npz, which another file says otherwise of"),
        ({"files.one.digest": {"algorithm": "md5", "hex": "ab"}}, "md5 has 32 hex digits, not 2"),
        ({"files.one.digest": {"algorithm": "md5", "hex": "0" * 32, "seen": "here"}}, "belongs to this machine"),
        ({"files.one.digest": {"algorithm": "crc", "hex": "0" * 32}}, "'md5' or 'sha256'"),
    ],
)
def test_the_table_is_closed(change, words):
    data = json.loads(small().model_dump_json())
    ((path, value),) = change.items()
    *parts, last = path.split(".")
    place = data
    for part in parts:
        place = place[part]
    place[last] = value
    with pytest.raises(ConfigError, match=words):
        parse(Source, data, "table")


def test_data_are_sought_in_the_named_folders_then_in_what_was_fetched(tmp_path, monkeypatch):
    assert data_folders() == [fetched_folder()] == [Path(os.environ["ZOO_CACHE"]) / "data"]
    one, two = tmp_path / "one", tmp_path / "two"
    monkeypatch.setenv("ZOO_DATA", f"{one}{os.pathsep}{two}{os.pathsep}")
    assert data_folders() == [one, two, fetched_folder()]
    assert find_file(small(), "one") is None
    places = [fetched_folder() / "small", two, two / "small", one]
    for place in places:
        path = put(place, b"data")
        assert find_file(small(), "one") == find_file(small(), "two") == path


def test_without_zoo_cache_they_are_beside_the_hugging_face_cache(monkeypatch):
    monkeypatch.delenv("ZOO_CACHE")
    monkeypatch.setenv("HF_HOME", "/somewhere")
    assert fetched_folder() == Path("/somewhere/zoo/data")


def test_a_file_that_is_nowhere_is_named_with_the_way_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    with pytest.raises(UnknownNameError) as error:
        locate("md22", "at-at")
    assert "run: zoo data fetch md22 --file at-at, or set ZOO_DATA" in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("seen", ["publisher", "index", None])
def test_a_copy_is_read_once_and_again_when_it_changed(tmp_path, monkeypatch, seen):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    read = []
    digest_file = downloads.digest_of

    def counted(path: Path, *how: object, **more: object) -> Digest:
        read.append(path)
        return digest_file(path, *how, **more)

    monkeypatch.setattr(downloads, "digest_of", counted)
    monkeypatch.setattr(store, "digest_of", counted)
    body = content(1000)
    source = small(digest(body, seen) if seen else None)
    path = put(tmp_path / "small", body)
    assert [locate(source, "one"), locate(source, "two"), locate(source, "one")] == [path] * 3
    assert read == [path]
    assert not fetched_folder().exists()  # what is remembered lies beside the data
    os.utime(path, ns=(1, 1))
    locate(source, "one")
    assert read == [path] * 2
    put(tmp_path / "small", content(1000, seed=1))
    with pytest.raises(IntegrityError, match="expected"):
        locate(source, "one")


def test_the_same_digest_does_not_speak_for_another_file_of_the_same_name(tmp_path, monkeypatch):
    body, wrong = content(1000), content(1000, seed=1)
    source = small(digest(body, "publisher"))
    times = (10**18, 10**18)
    for folder, what in (("one", body), ("two", wrong)):
        os.utime(put(tmp_path / folder, what), ns=times)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "one"))
    locate(source, "one")
    monkeypatch.setenv("ZOO_DATA", f"{tmp_path / 'two'}:{tmp_path / 'one'}")
    with pytest.raises(IntegrityError, match=r"two.* has md5 "):
        locate(source, "one")


def test_the_first_copy_of_a_file_without_digest_binds_the_later_ones(tmp_path, monkeypatch):
    first = put(fetched_folder() / "small", content(1000))
    assert locate(small(), "one") == first
    record = recorded(small(), "one")
    assert record is not None
    assert (record.digest.algorithm, record.digest.hex) == ("sha256", hashlib.sha256(content(1000)).hexdigest())
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    put(tmp_path, content(1000, seed=1))
    with pytest.raises(IntegrityError, match=r"which was recorded here on first use; .*--accept-digest"):
        locate(small(), "one")
    put(tmp_path, content(1000))
    assert locate(small(), "one") == tmp_path / "a.npz"


def test_a_size_that_cannot_be_right_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    monkeypatch.setattr(downloads, "digest_of", lambda *how, **more: pytest.fail("was read"))
    put(tmp_path, b"cut short")
    with pytest.raises(
        IntegrityError, match=r"a\.npz has 9 bytes, expected 10; remove it, and run: zoo data fetch small --file one"
    ):
        locate(small(digest(b"0123456789", "publisher"), bytes=10), "one")


def test_a_size_at_third_hand_refuses_nothing(site, tmp_path, monkeypatch):
    body = content(1000)
    url, expected = site.put(body, "a.npz"), digest(body, "publisher")
    binding, hearsay = small(expected, url, bytes=999), small(expected, url, bytes=999, bytes_seen="index")
    with pytest.raises(IntegrityError, match=r"announces 1,000 bytes, expected 999"):
        fetch(binding, "one", progress=False)
    assert fetch(hearsay, "one", progress=False).read_bytes() == body
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    path = put(tmp_path, body)
    assert locate(hearsay, "one") == path


def test_where_nobody_may_write_beside_the_data_zoo_remembers_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    body = content(1000)
    path = put(tmp_path, body)
    source = small(digest(body, "publisher"))
    (tmp_path / ".zoo-digests.json").mkdir()  # nor may root replace it
    assert locate(source, "one") == path
    assert str(path.resolve()) in (fetched_folder() / ".zoo-digests.json").read_text()
    monkeypatch.setattr(downloads, "digest_of", lambda *how, **more: pytest.fail("was read again"))
    assert locate(source, "one") == path


def test_where_nobody_may_write_at_all_data_are_read_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder")
    (tmp_path / ".zoo-digests.json").mkdir()
    body = content(1000)
    path = put(tmp_path, body)
    for source in (small(digest(body, "publisher")), small()):
        assert locate(source, "one") == locate(source, "one") == path


def test_a_file_of_the_users_own_with_a_common_name_is_no_record(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    path = put(tmp_path, b"data")
    (tmp_path / "digests.json").write_text("mine")
    assert locate(small(), "one") == path
    assert (tmp_path / "digests.json").read_text() == "mine"


def test_broken_records_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    put(tmp_path, b"data")
    (tmp_path / ".zoo-digests.json").write_text("{")
    with pytest.raises(
        IntegrityError, match=r"digests\.json.*; remove .*digests\.json, what is in its folder"
    ) as error:
        locate(small(), "one")
    assert len(str(error.value).splitlines()) == 1


def of_site(site: Site, body: bytes, expected: Digest | None) -> Source:
    return small(expected, site.put(body, "a.npz"))


def test_fetched_data_are_there_for_all_keys_and_are_not_asked_for_twice(site):
    source = of_site(site, content(1000), None)
    path = fetch(source, "one", progress=False)
    assert path == fetched_folder() / "small" / "a.npz" == locate(source, "two")
    assert fetch(source, "two", progress=False) == path
    assert len(site.seen) == 1
    assert (
        json.loads((fetched_folder() / ".zoo-digests.json").read_text())["files"]["small/a.npz"]["path"]
        == "small/a.npz"
    )


def test_fetched_to_a_folder_it_is_found_when_that_is_named(site, tmp_path, monkeypatch):
    source = of_site(site, content(1000), None)
    path = fetch(source, "one", tmp_path / "there", progress=False)
    assert find_file(source, "one") is None
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "there"))
    assert locate(source, "one") == path == tmp_path / "there" / "small" / "a.npz"


def test_a_site_that_changed_a_file_without_digest_is_noticed(site):
    path = fetch(of_site(site, content(1000), None), "one", progress=False)
    path.unlink()
    source = of_site(site, content(1000, seed=1), None)
    with pytest.raises(IntegrityError, match="recorded here on first use"):
        fetch(source, "one", progress=False)
    assert fetch(source, "one", accept_digest=True, progress=False).read_bytes() == content(1000, seed=1)
    assert locate(source, "one") == path
    assert len(site.seen) == 2  # the part was kept


def test_a_digest_at_third_hand_yields_to_the_user_and_stays_so(site):
    source = of_site(site, content(1000), digest(b"other", "index"))
    source = source.model_copy(
        update={"files": {key: file.model_copy(update={"bytes": 7}) for key, file in source.files.items()}}
    )
    with pytest.raises(IntegrityError):
        fetch(source, "one", progress=False)
    path = fetch(source, "one", accept_digest=True, progress=False)
    assert locate(source, "one") == path
    os.utime(path, ns=(1, 1))  # to be read again
    assert locate(source, "one") == path
    record = recorded(source, "one")
    assert record is not None
    assert record.accepted
    path.write_bytes(b"yet another")
    with pytest.raises(IntegrityError):
        locate(source, "one")


def test_a_copy_of_ones_own_can_be_accepted_too(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    source = small(digest(b"other", "index"))
    path = put(tmp_path, b"mine")
    with pytest.raises(
        IntegrityError, match=r"third hand .*take the file with: zoo data fetch small --file one --accept-digest, or"
    ):
        locate(source, "one")
    assert fetch(source, "one", accept_digest=True, progress=False) == path == locate(source, "one")


def test_nobody_can_accept_what_its_publisher_denies(site, tmp_path):
    source = of_site(site, content(1000), digest(b"other", "publisher"))
    for folder in (None, tmp_path):
        with pytest.raises(IntegrityError, match="as published"):
            fetch(source, "one", folder, accept_digest=True, progress=False)
    path = put(fetched_folder() / "small", b"mine")
    with pytest.raises(
        IntegrityError, match=r"as published; remove .*a\.npz, and run: zoo data fetch small --file one$"
    ):
        fetch(source, "one", accept_digest=True, progress=False)
    assert path.read_bytes() == b"mine"
