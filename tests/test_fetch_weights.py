"""Weights come whole, as published and with their terms accepted, or not at all; teachers of one's own likewise."""

import hashlib
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mace_models
import pytest
import torch
from hub_server import Fault, HubServer
from licence_texts import TEXT, save_text
from test_download import Site, Trouble, serving

from zoo import fetch_weights as module
from zoo.acceptance import check_accepted, describe_licence, restricts, text_path, text_to_repeat
from zoo.config import write_json
from zoo.data import download as downloading
from zoo.errors import (
    AccessError,
    CapabilityError,
    ConfigError,
    HubError,
    IntegrityError,
    LicenceError,
    MissingPackageError,
    UnknownNameError,
    ZooError,
    ZooWarning,
)
from zoo.fetch_weights import add_teacher, fetch_weights, remove_teacher
from zoo.files import cache_root
from zoo.licences import LICENCES, TERMS, Source
from zoo.teachers import load_teacher
from zoo.teachers import weights as weights_module
from zoo.teachers.weights import (
    FACTS,
    Weights,
    find_own,
    find_weights,
    own_teacher,
    read_record,
    record_path,
    weights_folder,
    weights_path,
)

ASL = "LicenseRef-ASL"
FREE, ACADEMIC = "mace-mp-0-large/teacher", "mace-off23-large/teacher"  # MIT, LicenseRef-ASL
BODY = bytes(range(256)) * 1000


def sha256(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def git(body: bytes) -> str:
    return f"git:{hashlib.sha1(b'blob %d' % len(body) + bytes(1) + body).hexdigest()}"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server of files over loopback, and no patience: tries follow at once, and each byte counts."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(downloading, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(downloading, "WORTH", 1)
    with serving() as one:
        yield one


Publish = Callable[..., Weights]


@pytest.fixture
def publish(site: Site, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Publishes a file as the weights of all teachers that are asked for, with the digest that is said of it.

    Beside it the text of the licence of some.
    """
    monkeypatch.setitem(TERMS, ASL, replace(TERMS[ASL], text=site.put(TEXT.encode(), "ASL.md")))

    def published(body: bytes = BODY, **said: Any) -> Weights:
        weights = Weights(site.put(body, "large.model"), **said)
        monkeypatch.setattr(module, "weights_of", lambda name: weights)
        return weights

    return published


def get(name: str = FREE, **how: Any) -> Path:
    return fetch_weights(name, progress=False, **how)


def refusal(kind: type[ZooError], name: str = FREE, **how: Any) -> str:
    with pytest.raises(kind) as caught:
        get(name, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left(name: str = FREE) -> list[str]:
    """What lies in the folder of a teacher."""
    folder = weights_folder(name)
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


# --- what is fetched -------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", [sha256(BODY), git(BODY), None])
def test_file_is_fetched_once_and_then_found(site: Site, publish: Publish, digest: str | None) -> None:
    weights = publish(digest=digest, size=len(BODY))
    path = get()
    assert path == weights_path(FREE, weights) == find_weights(FREE, weights).path
    assert path.read_bytes() == BODY
    assert get() == path
    assert len(site.seen) == 1
    assert left() == ["large.model", "large.model.json"]
    assert ".unchecked" not in record_path(path).read_text()


def test_first_download_is_pinned_where_nobody_publishes_a_digest(publish: Publish) -> None:
    weights = publish()
    path = get()
    record = read_record(path)
    assert record is not None
    assert (record.url, record.digest, record.size) == (weights.url, sha256(BODY), len(BODY))
    path.write_bytes(BODY[:-1] + b"?")
    changed = sha256(path.read_bytes())
    message = refusal(IntegrityError)
    assert f"expected {sha256(BODY)}, which was recorded at its first download" in message
    assert f"run: zoo teachers fetch {FREE} --accept-digest {changed}" in message
    assert get(accept_digest=changed) == path, "as the message says"
    assert get() == path == find_weights(FREE, weights).path
    path.unlink()
    assert f"{sha256(BODY)}, expected {changed} as you have accepted it" in refusal(IntegrityError)


def test_digest_from_third_hand_is_called_that_and_what_came_waits_to_be_accepted(site: Site, publish: Publish) -> None:
    weights = publish(digest=sha256(b"another"), size=7, seen="index")
    message = refusal(IntegrityError)
    assert (
        f"gave a file of {len(BODY):,} bytes and {sha256(BODY)}, expected 7 bytes and {sha256(b'another')}" in message
    )
    assert "from third hand, not from its publisher" in message
    assert message.endswith(f"run: zoo teachers fetch {FREE} --accept-digest {sha256(BODY)}")
    assert left() == ["large.model.unchecked"]
    assert sha256(BODY) in refusal(IntegrityError, accept_digest=sha256(b"something else"))
    path = get(accept_digest=sha256(BODY))
    assert get() == path == find_weights(FREE, weights).path, "once is enough"
    assert len(site.seen) == 1, "it did not come again"
    assert left() == ["large.model", "large.model.json"]


def test_digest_that_is_published_is_not_replaced_by_one_of_the_user(publish: Publish) -> None:
    publish(digest=sha256(BODY))
    message = refusal(ConfigError, accept_digest=sha256(b"another"))
    assert f"--accept-digest {sha256(b'another')}, but {FREE} is published with {sha256(BODY)}; leave it out" in message
    assert get(accept_digest=sha256(BODY)).read_bytes() == BODY
    assert "expected sha256: and 64 hex digits" in refusal(ConfigError, accept_digest="abc")


def test_digest_that_is_known_before_the_first_download_is_held_to(publish: Publish) -> None:
    publish()
    assert "as you have accepted it" in refusal(IntegrityError, accept_digest=sha256(b"another"))
    assert get(accept_digest=sha256(BODY)).read_bytes() == BODY
    assert "as you have accepted it" in refusal(IntegrityError, accept_digest=sha256(b"another"))


@pytest.mark.parametrize("digest", [sha256(BODY), git(BODY), None])
def test_file_is_read_once_when_it_comes(publish: Publish, monkeypatch: pytest.MonkeyPatch, digest: str | None) -> None:
    read: list[str] = []
    real = weights_module.digests_of
    monkeypatch.setattr(weights_module, "digests_of", lambda path, **how: read.append(path.name) or real(path, **how))
    publish(digest=digest)
    get()
    assert read == ["large.model.unchecked"]


def test_what_is_here_is_verified_where_nobody_may_write(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(digest=sha256(BODY))
    path = get()
    monkeypatch.setattr(module, "write_json", lambda *_: pytest.fail("wrote"))
    monkeypatch.setattr(module, "_alone", lambda *_: pytest.fail("locked"))
    assert get() == path


def test_files_that_one_address_gives_are_fetched_once_for_a_family(site: Site, publish: Publish) -> None:
    publish(digest=sha256(BODY))
    path = get("mace-mh-1/omat-pbe-teacher", accept_licence=True)
    assert get("mace-mh-1/omol-teacher") == path
    assert [seen.path for seen in site.seen] == ["/large.model", "/ASL.md"]


def test_half_a_download_is_gone_on_with_and_has_no_name_yet(site: Site, publish: Publish) -> None:
    publish(digest=sha256(BODY))
    site.always = Trouble(cut=100_000)
    site.files["/large.model"].ranges = False
    assert "run the same again" in refusal(HubError)
    assert left() == ["large.model.unchecked.part", "large.model.unchecked.part.json"]
    site.always, before = None, site.sent
    site.files["/large.model"].ranges = True
    assert get().read_bytes() == BODY
    assert site.sent - before == len(BODY) - 100_000
    assert left() == ["large.model", "large.model.json"]


@pytest.mark.parametrize("kind", ["sha256", "git"])
def test_other_file_than_was_published_never_gets_the_name(publish: Publish, kind: str) -> None:
    expected = f"{kind}:{'0' * (64 if kind == 'sha256' else 40)}"
    weights = publish(digest=expected)
    message = refusal(IntegrityError)
    assert f"expected {expected} as published; it was removed" in message
    assert f"put it here: {weights_path(FREE, weights)}" in message
    assert left() == []


def test_file_that_a_killed_process_left_unchecked_is_checked_first(site: Site, publish: Publish) -> None:
    unchecked = weights_path(FREE, publish(digest=git(BODY))).with_name("large.model.unchecked")
    unchecked.parent.mkdir(parents=True)
    unchecked.write_bytes(b"something else")
    assert "it was removed" in refusal(IntegrityError)
    unchecked.write_bytes(BODY)
    assert get().read_bytes() == BODY
    assert left() == ["large.model", "large.model.json"]
    assert not site.seen


@pytest.mark.parametrize("kind", ["sha256", "git"])
def test_file_of_another_size_is_refused(publish: Publish, kind: str) -> None:
    publish(digest=f"{kind}:{'0' * (64 if kind == 'sha256' else 40)}", size=len(BODY) + 1)
    assert f"{len(BODY):,} bytes, expected {len(BODY) + 1:,}" in refusal(IntegrityError)
    assert left() == []


@pytest.mark.parametrize("status", [401, 403])
def test_site_that_refuses_is_said_with_the_place_for_a_copy(site: Site, publish: Publish, status: int) -> None:
    weights = publish(digest=sha256(BODY))
    site.always = Trouble(status=status)
    message = refusal(AccessError)
    assert f"{weights.url} refuses ({status}); fetch it in a browser, and put it here: " in message
    assert message.endswith(f" {weights_path(FREE, weights)}")


@pytest.mark.parametrize("digest", [sha256(BODY), git(BODY)])
def test_file_that_is_gone_is_fetched_by_hand(site: Site, publish: Publish, digest: str) -> None:
    weights = publish(digest=digest)
    put = weights_path(FREE, weights)
    site.files.clear()
    message = refusal(HubError)
    assert "is gone (404), its site may have moved it; fetch it in a browser, and put it here: " in message
    assert message.endswith(f" {put}")
    put.parent.mkdir(parents=True, exist_ok=True)
    put.write_bytes(BODY)
    assert get() == put


def test_file_that_was_put_there_by_hand_is_checked_as_well(publish: Publish) -> None:
    weights = publish(digest=sha256(BODY), size=len(BODY))
    put = weights_path(FREE, weights)
    put.parent.mkdir(parents=True)
    put.write_bytes(BODY[:-1] + b"?")
    assert "not opened, remove it" in refusal(IntegrityError)
    publish(size=len(BODY) + 1)
    assert "bytes, expected" in refusal(IntegrityError)
    assert read_record(put) is None, "what is refused is not pinned"


def test_offline_nothing_is_asked_and_the_place_is_named(
    site: Site, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = publish(digest=sha256(BODY))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refusal(HubError)
    assert "HF_HUB_OFFLINE is set" in message
    assert str(weights_path(FREE, weights)) in message
    assert not site.seen


def test_server_that_cannot_be_reached_is_said_in_one_line(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = replace(publish(), url="http://127.0.0.1:9/large.model")
    monkeypatch.setattr(module, "weights_of", lambda name: weights)
    message = refusal(HubError)
    assert "http://127.0.0.1:9/large.model cannot be reached" in message
    assert message.endswith(f"or first put a copy of it here: {weights_path(FREE, weights)}")


def test_cache_that_cannot_be_written_is_said_with_the_remedy(publish: Publish) -> None:
    publish(digest=sha256(BODY))
    cache_root().mkdir(parents=True, exist_ok=True)
    (cache_root() / "teachers").write_text("a file where a folder should be")
    assert "cannot be written" in refusal(ConfigError)
    assert "ZOO_CACHE" in refusal(ConfigError)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("sevennet-0/teacher", "come with its package; the package sevenn is not installed; run: zoo teachers install"),
        ("mace", "mace is a family; name one of its teachers: mace-off23-small/teacher, mace-off23-medium/teacher"),
        ("stillinger-weber/teacher", "stillinger-weber/teacher is a formula of zoo; it needs no file"),
        ("jmp-l/teacher", "run: zoo convert jmp-l"),
        ("mace-off23-huge/teacher", "zoo teachers lists them"),
    ],
)
def test_teacher_without_a_file_to_fetch_says_what_to_do(
    name: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.teachers.families._is_found", lambda module: False)
    assert advice in refusal(UnknownNameError, name)


def test_weights_of_a_package_that_is_here_are_nothing_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.teachers.families._is_found", lambda module: True)
    assert refusal(UnknownNameError, "sevennet-0/teacher").endswith("it is here, and there is nothing to fetch")


# --- terms -----------------------------------------------------------------------------------------


def test_licence_is_shown_before_a_download(publish: Publish, capsys: pytest.CaptureFixture[str]) -> None:
    publish(digest=sha256(BODY))
    fetch_weights(FREE)
    shown = capsys.readouterr().err
    assert "licence: MIT, MIT License: https://spdx.org/licenses/MIT.html" in shown
    fetch_weights(FREE)
    assert "licence" not in capsys.readouterr().err


def test_terms_that_restrict_are_accepted_once(site: Site, publish: Publish) -> None:
    weights = publish(digest=sha256(BODY))
    message = refusal(AccessError, ACADEMIC)
    assert "LicenseRef-ASL, which allows no commercial use" in message
    assert TERMS["LicenseRef-ASL"].url in message
    assert f"run: zoo teachers fetch {ACADEMIC} --accept-licence" in message
    assert not site.seen
    assert left(ACADEMIC) == []
    get(ACADEMIC, accept_licence=True)
    weights_path(ACADEMIC, weights).unlink()
    get(ACADEMIC)
    assert [seen.path for seen in site.seen] == ["/large.model", "/ASL.md", "/large.model"]
    refusal(AccessError, "mace-off23-small/teacher")


def test_what_was_accepted_is_on_record(publish: Publish) -> None:
    publish(digest=sha256(BODY))
    get(ACADEMIC, accept_licence=True)
    told = json.loads((cache_root() / "licences" / f"{ACADEMIC}.json").read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", told.pop("date"))
    digest = hashlib.sha256(TEXT.encode()).hexdigest()
    assert told == {"name": ACADEMIC, "licence": ASL, "address": TERMS[ASL].url, "text_sha256": digest}


def ask(licence: str, *, accept: bool = False) -> None:
    check_accepted(ACADEMIC, licence, accept=accept, command="COMMAND")


def test_another_licence_and_another_address_are_asked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    ask("LicenseRef-ASL", accept=True)
    ask("LicenseRef-ASL")
    with pytest.raises(AccessError, match="CC-BY-NC"):
        ask("CC-BY-NC-4.0")
    newer = replace(TERMS["LicenseRef-ASL"], url="https://github.com/gabor1/ASL/blob/main/ASL-2.md")
    monkeypatch.setitem(TERMS, "LicenseRef-ASL", newer)
    with pytest.raises(AccessError, match="ASL-2"):
        ask("LicenseRef-ASL")


def test_record_that_is_damaged_or_of_another_teacher_accepts_nothing() -> None:
    ask("LicenseRef-ASL", accept=True)
    path = cache_root() / "licences" / f"{ACADEMIC}.json"
    whole = path.read_text()
    for damaged in (whole[:-9], whole.replace("off23-large", "off23-small")):
        path.write_text(damaged)
        with pytest.raises(AccessError, match="run: COMMAND"):
            ask("LicenseRef-ASL")


def test_terms_that_restrict_are_those_without_commerce_or_of_their_own() -> None:
    assert {licence for licence in LICENCES if restricts(licence)} == {
        "CC-BY-NC-4.0",
        "CC-BY-NC-SA-4.0",
        *(licence for licence in LICENCES if licence.startswith("LicenseRef-")),
    }
    assert "no commercial use" in describe_licence("LicenseRef-ASL")
    assert "no commercial use" not in describe_licence("LicenseRef-FAIR-Chemistry-v1")
    with pytest.raises(LicenceError, match="does not know"):
        restricts("WTFPL")


# --- texts that students must repeat ---------------------------------------------------------------

BOUND = Source("teacher", ACADEMIC, ASL)


def noted(**how: Any) -> str:
    """What a warning says, while the weights come."""
    with pytest.warns(ZooWarning) as caught:
        assert get(ACADEMIC, **how).read_bytes() == BODY
    (told,) = [str(one.message) for one in caught]
    assert "\n" not in told
    assert told.startswith(
        f"the weights of {ACADEMIC} are here, but not the text of {ASL}, which students must repeat ("
    )
    assert told.endswith(f"); save {TERMS[ASL].text} as {text_path(TERMS[ASL])}")
    return told


def test_text_comes_once_with_the_weights_and_students_repeat_it(site: Site, publish: Publish) -> None:
    publish(digest=sha256(BODY))
    get(ACADEMIC, accept_licence=True)
    get("mace-off23-small/teacher", accept_licence=True)
    assert [seen.path for seen in site.seen].count("/ASL.md") == 1
    assert text_to_repeat([BOUND]) == TEXT.strip()
    assert sorted(path.name for path in text_path(TERMS[ASL]).parent.iterdir()) == [
        "asl.txt",
        "mace-off23-large",
        "mace-off23-small",
    ]


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (Trouble(status=404), "is gone (404), its site may have moved it"),
        (Trouble(status=403), "refuses (403)"),
        (Trouble(headers={"Content-Type": "text/html"}), "gives a web page in the place of the file"),
    ],
)
def test_weights_stay_where_the_text_alone_cannot_be_fetched(
    site: Site, publish: Publish, trouble: Trouble, reason: str
) -> None:
    publish(digest=sha256(BODY))
    site.troubles.append(None)
    site.always = trouble
    assert f"({TERMS[ASL].text} {reason})" in noted(accept_licence=True)
    with pytest.raises(LicenceError, match=f"run: zoo teachers fetch {ACADEMIC} --accept-licence"):
        text_to_repeat([BOUND])
    site.always = None
    get(ACADEMIC)
    assert text_to_repeat([BOUND]) == TEXT.strip()


def test_what_is_no_text_is_not_taken_for_one(site: Site, publish: Publish) -> None:
    publish(digest=sha256(BODY))
    site.put(b"<html>accept our cookies</html>", "ASL.md")
    assert f"({TERMS[ASL].text} gave no text)" in noted(accept_licence=True)
    assert not list(text_path(TERMS[ASL]).parent.glob("asl*")), "what came is not taken for what a user saved"
    site.put(TEXT.encode(), "ASL.md")
    get(ACADEMIC)
    assert text_to_repeat([BOUND]) == TEXT.strip()


@pytest.mark.parametrize(
    "saved", ["naïve".encode("latin-1"), TEXT.encode() + b"word " * 12_000, b"<html>", TEXT.encode("utf-16")]
)
def test_what_the_user_saved_is_never_written_over(site: Site, publish: Publish, saved: bytes) -> None:
    publish(digest=sha256(BODY))
    path = save_text(ASL, saved)
    with pytest.warns(ZooWarning) as caught:
        get(ACADEMIC, accept_licence=True)
    assert [str(one.message) for one in caught] == [
        f"the weights of {ACADEMIC} are here, but {path} is no text of {ASL} (it is blank, not UTF-8, a web page, or "
        f"more than 48 KiB); mend it, or save {TERMS[ASL].text} in its place"
    ]
    assert path.read_bytes() == saved
    assert "/ASL.md" not in [seen.path for seen in site.seen]


def test_without_a_network_the_weights_are_enough_and_a_text_that_was_saved_will_do(
    site: Site, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = weights_path(ACADEMIC, publish(digest=sha256(BODY)))
    put.parent.mkdir(parents=True)
    put.write_bytes(BODY)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert get(ACADEMIC) == put, "nothing is accepted by that"
    assert "(HF_HUB_OFFLINE is set)" in noted(accept_licence=True)
    save_text(ASL)
    get(ACADEMIC)
    assert text_to_repeat([BOUND]) == TEXT.strip()
    assert not site.seen


def test_text_that_changed_since_it_was_accepted_is_refused_until_it_is_accepted(publish: Publish) -> None:
    publish(digest=sha256(BODY))
    get(ACADEMIC, accept_licence=True)
    path = save_text(ASL, TEXT.replace("all", "not all"))
    get(ACADEMIC)
    with pytest.raises(LicenceError) as caught:
        text_to_repeat([BOUND])
    assert str(caught.value) == (
        f"{path} is not the text of {ASL} that was accepted for {ACADEMIC}; remove it, and "
        f"run: zoo teachers fetch {ACADEMIC} --accept-licence"
    )
    assert "not all" in (text_to_repeat([Source("teacher", "own/mine", ASL)]) or ""), "for that, none was recorded"
    path.unlink()
    get(ACADEMIC, accept_licence=True)
    assert text_to_repeat([BOUND]) == TEXT.strip(), "as the message says"
    save_text(ASL, TEXT.replace("all", "less"))
    get(ACADEMIC, accept_licence=True)
    assert "That's less." in (text_to_repeat([BOUND]) or "")


def test_text_behind_terms_comes_with_the_token(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = server.create("lab/UMA")
    server.commit("lab/UMA", {FILE: BODY, "LICENSE": TEXT.encode()})
    repo.gated, repo.granted = "manual", {"me"}
    set_gated(server, monkeypatch)
    address = f"{server.endpoint}/lab/UMA/resolve/main/LICENSE"
    monkeypatch.setitem(TERMS, ASL, replace(TERMS[ASL], text=address))
    get(ACADEMIC, accept_licence=True)
    assert text_to_repeat([BOUND]) == TEXT.strip()
    text_path(TERMS[ASL]).unlink()
    monkeypatch.delenv("ZOO_HUB_TOKEN")
    assert f"({address} refuses (401))" in noted()


# --- weights behind terms on a hub -----------------------------------------------------------------

FILE = "checkpoints/uma.pt"


@pytest.fixture
def gated(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A hub with weights that only those may fetch who have accepted its terms, as I have."""
    repo = server.create("lab/UMA")
    server.commit("lab/UMA", {FILE: BODY})
    repo.gated, repo.granted = "manual", {"me"}
    set_gated(server, monkeypatch)
    return server


def set_gated(server: HubServer, monkeypatch: pytest.MonkeyPatch, **said: Any) -> Weights:
    page = f"{server.endpoint}/lab/UMA"
    weights = Weights(f"{page}/resolve/main/{FILE}", gated=page, **said)
    monkeypatch.setattr(module, "weights_of", lambda name: weights)
    return weights


def test_gated_weights_come_with_the_token_and_are_pinned(gated: HubServer) -> None:
    path = get()
    assert path.read_bytes() == BODY
    record = read_record(path)
    assert record is not None
    assert record.digest == sha256(BODY)
    assert left() == ["uma.pt", "uma.pt.json"]
    asked = len(gated.requests)
    assert get() == path
    assert len(gated.requests) == asked


def test_without_a_token_the_page_and_the_login_are_named(gated: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_HUB_TOKEN")
    message = refusal(AccessError)
    assert f"accepted the terms at {gated.endpoint}/lab/UMA" in message
    assert "set ZOO_HUB_TOKEN" in message
    page = "https://huggingface.co/facebook/UMA"
    weights = Weights(f"{page}/resolve/main/{FILE}", gated=page)
    monkeypatch.setattr(module, "weights_of", lambda name: weights)
    monkeypatch.setattr("zoo.hub.client.get_token", lambda: None)
    message = refusal(AccessError)
    assert f"accepted the terms at {page}; do so, and then run: hf auth login" in message


def test_terms_that_were_not_accepted_on_the_hub_are_named(gated: HubServer) -> None:
    gated.repositories["lab/UMA"].granted = set()
    message = refusal(AccessError)
    assert "refuses (403); " in message
    assert f"accept the terms at {gated.endpoint}/lab/UMA as the user whose token this is; to use another" in message
    assert not (weights_folder(FREE) / "uma.pt").exists()


def test_wrong_token_is_said(gated: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_HUB_TOKEN", "token-of-nobody")
    assert "your token is not known there" in refusal(AccessError)
    assert not (weights_folder(FREE) / "uma.pt").exists()


def test_gated_file_that_is_not_as_published_is_removed(gated: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    set_gated(gated, monkeypatch, digest="sha256:" + "0" * 64)
    assert "as published; it was removed" in refusal(IntegrityError)
    assert left() == []
    set_gated(gated, monkeypatch, size=5)
    assert "expected 5; it was not fetched" in refusal(IntegrityError)
    assert left() == []


def test_file_that_another_process_has_just_fetched_is_verified(
    site: Site, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = weights_path(FREE, publish(digest=sha256(BODY)))

    @contextmanager
    def late(path: Path) -> Iterator[None]:
        path.write_bytes(BODY)
        yield

    monkeypatch.setattr(module, "_alone", late)
    assert get() == put
    assert not site.seen


def test_token_is_for_its_hub_alone_wherever_that_leads(
    gated: HubServer, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password of-another-program")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    gated.order(Fault("GET", "/resolve/", "redirect", url=site.put(BODY, "store/7")))
    assert get().read_bytes() == BODY
    assert [seen.headers["authorization"] for seen in gated.requests if "/resolve/" in seen.path] == [
        "Bearer token-of-me"
    ]
    assert "token-of-me" not in site.seen[-1].headers.get("authorization", "")


def test_gated_file_that_is_not_what_the_user_accepts_waits_for_him(gated: HubServer) -> None:
    message = refusal(IntegrityError, accept_digest=sha256(b"another"))
    assert f"has {len(BODY):,}" not in message
    assert f"run: zoo teachers fetch {FREE} --accept-digest {sha256(BODY)}" in message
    assert left() == ["uma.pt.unchecked"]
    assert get(accept_digest=sha256(BODY)).read_bytes() == BODY
    assert sum(seen.method == "GET" and "/resolve/" in seen.path for seen in gated.requests) == 1


def test_gated_file_that_was_cut_is_gone_on_with(gated: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "PAUSES", ())
    gated.order(Fault("GET", "/resolve/", "cut", size=100_000))
    assert "what came is kept: run the same again" in refusal(HubError)
    assert left() == ["uma.pt.unchecked.part", "uma.pt.unchecked.part.json"]
    before = len(gated.requests)
    assert get().read_bytes() == BODY
    (asked,) = [seen for seen in gated.requests[before:] if seen.method == "GET" and "/resolve/" in seen.path]
    assert asked.headers["range"] == "bytes=100000-"
    assert left() == ["uma.pt", "uma.pt.json"]


def test_hub_that_cannot_be_reached_is_said(gated: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.hub.client.PAUSES", ())
    gated.stop()
    message = refusal(HubError)
    assert "cannot be reached" in message
    assert message.endswith(f"here: {weights_folder(FREE) / 'uma.pt'}, and run the same again")
    assert left() == []


FETCH = """
import sys
from zoo import fetch_weights as module
from zoo.teachers.weights import Weights
weights = Weights(sys.argv[2], gated=sys.argv[3])
module.weights_of = lambda name: weights
module.fetch_weights(sys.argv[1], progress=False)
"""


def test_gated_file_that_another_process_fetches_is_not_touched_and_survives_its_death(
    gated: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = set_gated(gated, monkeypatch)
    part = weights_folder(FREE) / "uma.pt.unchecked.part"
    gated.order(Fault("GET", "/resolve/", "cut", times=math.inf, size=2000))  # then it waits, and tries again
    other = subprocess.Popen([sys.executable, "-c", FETCH, FREE, weights.url, str(weights.gated)])
    try:
        while not (part.is_file() and part.stat().st_size):
            assert other.poll() is None
            time.sleep(0.02)
        message = refusal(ConfigError)
    finally:
        other.kill()
        other.wait()
    came = part.stat().st_size
    gated.heal()
    before = len(gated.requests)
    assert message.startswith(f"another process fetches {weights_path(FREE, weights)}; wait for it, then run the same")
    assert get().read_bytes() == BODY
    (asked,) = [seen for seen in gated.requests[before:] if seen.method == "GET" and "/resolve/" in seen.path]
    assert asked.headers["range"] == f"bytes={came}-"
    assert left() == ["uma.pt", "uma.pt.json"]


def test_gated_file_that_is_gone_is_said(gated: HubServer) -> None:
    gated.commit("lab/UMA", {FILE: None, "checkpoints/uma-2.pt": BODY})
    assert f"has no {FILE} any more" in refusal(IntegrityError)


# --- teachers of one's own -------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that are loaded; each is silicon."""
    asked: list[str] = []

    def load(name: str) -> Any:
        asked.append(name)
        return load_teacher("stillinger-weber/teacher", dtype=torch.float64)

    monkeypatch.setattr(module, "load_teacher", load)
    return asked


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my.model"
    path.write_bytes(BODY)
    return path


def add(file: Path, name: str = "own/mine", **facts: Any) -> Any:
    told = {"family": "mace", "licence": "MIT", "level_of_theory": "PBE"}
    return add_teacher(name, file, **(told | facts))


def test_own_file_is_copied_opened_once_and_described(opened: list[str], file: Path) -> None:
    facts = add(file, citation="me", head="pbe")
    assert opened == ["own/mine"]
    assert facts == own_teacher("own/mine")
    assert (facts.elements, facts.sha256, facts.head) == (("Si",), hashlib.sha256(BODY).hexdigest(), "pbe")
    file.write_bytes(b"trained further")
    assert find_own(facts).read_bytes() == BODY


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "mace/mine"}, r"own/my-teacher"),
        ({"name": "own/My_Teacher"}, r"own/my-teacher"),
        ({"family": "xtb"}, r"one of .*mace"),
        ({"licence": "GPL"}, r"give the SPDX of one of .*MIT"),
        ({"level_of_theory": " "}, "level of theory"),
    ],
)
def test_own_file_is_not_added_without_what_must_be_known(
    opened: list[str], file: Path, wrong: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        add(file, **wrong)
    assert "\n" not in str(caught.value)
    assert not opened
    assert not (cache_root() / "teachers").exists()


def test_file_that_is_not_there_is_said(opened: list[str], tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="is no file"):
        add(tmp_path / "nowhere")


def test_own_file_with_another_digest_is_not_added(opened: list[str], file: Path) -> None:
    with pytest.raises(IntegrityError, match=r"has the sha256 .*, expected 0000"):
        add(file, sha256="0" * 64)
    assert own_teacher("own/mine") is None
    assert not weights_folder("own/mine").exists()


@pytest.mark.parametrize("written", ["{}", "sha256:{}", "SHA256:{} "])
def test_digest_of_an_own_file_may_be_written_as_programs_print_it(opened: list[str], file: Path, written: str) -> None:
    for digits in (hashlib.sha256(BODY).hexdigest(), hashlib.sha256(BODY).hexdigest().upper()):
        assert add(file, sha256=written.format(digits)).elements == ("Si",)
        remove_teacher("own/mine")


@pytest.mark.parametrize("wrong", ["", "abc", "0" * 63, "g" * 64, "git:" + "0" * 64, "0" * 64 + "\n0"])
def test_digest_that_is_none_is_said_before_anything_is_copied(opened: list[str], file: Path, wrong: str) -> None:
    with pytest.raises(ConfigError, match="expected 64 hex digits") as caught:
        add(file, sha256=wrong)
    assert "\n" not in str(caught.value)
    assert not (cache_root() / "teachers").exists()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("not a\nmodel"), IntegrityError),
        (IntegrityError("truncated"), IntegrityError),
        (MissingPackageError("install it"), MissingPackageError),
        (CapabilityError("has two heads; choose one with --head"), CapabilityError),
        (HubError("cannot be reached"), HubError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_own_file_that_cannot_be_opened_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, file: Path, error: BaseException, kind: type[BaseException]
) -> None:
    def fail(name: str) -> None:
        assert own_teacher(name) is not None, "what opens it reads the record"
        raise error

    monkeypatch.setattr(module, "load_teacher", fail)
    with pytest.raises(kind) as caught:
        add(file)
    assert "\n" not in str(caught.value)
    assert own_teacher("own/mine") is None
    assert not weights_folder("own/mine").exists()


@pytest.mark.sevennet
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_what_is_no_file_of_the_family_is_named_as_the_user_knows_it(file: Path) -> None:
    with pytest.raises(IntegrityError, match=r"or another --family wrote it$") as caught:
        add(file, family="sevennet")
    assert str(caught.value).startswith(f"{file} ")
    assert str(cache_root()) not in str(caught.value)


@pytest.mark.mace
@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:The TorchScript type system:UserWarning")
def test_file_of_mace_with_two_heads_wants_one_chosen_and_one_without_does_not(tmp_path: Path) -> None:
    two = mace_models.save(mace_models.random_model("heads", heads=["omat_pbe", "omol"]), tmp_path / "two.model")
    with pytest.raises(CapabilityError, match=r"heads omat_pbe, omol, and none was chosen; .* --head HEAD$") as caught:
        add(two)
    assert str(caught.value).startswith(f"{two} has"), "the file that was given, not a copy that is gone"
    assert "\n" not in str(caught.value)
    assert not weights_folder("own/mine").exists()
    assert add(two, head="omol").elements == ("H", "O", "Si")
    digests = {load_teacher("own/mine").weights_sha256, hashlib.sha256(two.read_bytes()).hexdigest()}
    remove_teacher("own/mine")
    add(two, head="omat_pbe")
    assert len(digests | {load_teacher("own/mine").weights_sha256}) == 3, "a head is a teacher of its own"
    plain = mace_models.save(mace_models.random_model("vectors"), tmp_path / "plain.model")
    assert add(plain, "own/plain").elements == ("H", "O", "Si")
    assert load_teacher("own/plain").weights_sha256 == hashlib.sha256(plain.read_bytes()).hexdigest()


def test_own_teacher_is_not_replaced_unasked(opened: list[str], file: Path) -> None:
    facts = add(file)
    file.write_bytes(b"another")
    with pytest.raises(
        ConfigError, match=r"is here already; choose another name, or run: zoo teachers remove own/mine$"
    ):
        add(file)
    assert find_own(facts).read_bytes() == BODY


def test_folder_that_holds_something_else_is_neither_replaced_nor_removed(opened: list[str], file: Path) -> None:
    folder = weights_folder("own/mine")
    folder.mkdir(parents=True)
    mine = folder / "mine.txt"
    mine.write_text("mine")
    with pytest.raises(ConfigError, match=f"{folder} holds files, and no record of a teacher; choose another name, or"):
        add(file)
    assert mine.read_text() == "mine"
    mine.unlink()
    assert add(file).elements == ("Si",)


def test_what_a_killed_process_left_half_added_is_added_anew(opened: list[str], file: Path) -> None:
    half = add(file).model_copy(update={"elements": ()})
    write_json(weights_folder("own/mine") / FACTS, half)
    assert add(file).elements == ("Si",)
