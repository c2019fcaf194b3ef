"""``zoo data``: what there is and under which terms is said without a network, and fetching is one command."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from test_download import Site, Trouble, content, serving

import zoo.cli_data as commands
import zoo.data.download as downloads
import zoo.data.sources as table
from zoo.cli import Commands
from zoo.data.sources import Source

main = Commands("zoo", commands={"data": commands.data})
NAMES = ("md17", "md17-ccsd", "rmd17", "md22", "spice-1", "spice-2", "spice-mace-off", "mptrj-json", "mptrj-extxyz")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """No data sets of this machine, and an empty folder to work in."""
    monkeypatch.delenv("ZOO_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def site(monkeypatch):
    """A site that holds the files of a data set ``small``, which is in the table."""
    monkeypatch.setattr(downloads, "PAUSES", (0.0,))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with serving() as one:
        for name in ("a.npz", "b.zip"):
            one.put(content(100_000), name)
        source = small(one)
        monkeypatch.setattr(table, "sources", lambda: {"small": source})
        monkeypatch.setattr(commands, "sources", lambda: {"small": source})
        yield one


def small(site: Site) -> Source:
    files = {
        "one": {"name": "a.npz", "urls": [f"{site.url}/a.npz"], "bytes": 100_000, "frames": 1234, "atoms": 9},
        "two": {"name": "b.zip", "urls": [f"{site.url}/b.zip"], "members": "*2"},
        "three": {"name": "b.zip", "urls": [f"{site.url}/b.zip"], "members": "*3"},
    }
    facts = {"name": "small", "title": "A small data set", "format": "sgdml", "licence": "CC0-1.0"}
    facts |= {"licence_note": "with a note", "licence_url": "https://example.org/terms", "citation": "Nobody (2000)"}
    facts |= {"level_of_theory": "PBE", "units": "eV, Å", "files": files}
    return Source.model_validate_json(json.dumps(facts))


def ask(*arguments: object) -> click.testing.Result:
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


def lines(*arguments: object) -> list[str]:
    result = ask(*arguments)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def refusal(*arguments: object) -> str:
    """What was said last, which must be one line of zoo, with the exit code 1."""
    result = ask(*arguments)
    assert result.exit_code == 1, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("zoo: ")]
    assert result.output.splitlines()[-1] == line
    return line


@pytest.mark.parametrize("command", ["", "list", "show", "fetch"])
def test_each_command_explains_itself_on_a_terminal(command):
    output = lines(*command.split(), "--help")
    assert len(output) > 5
    assert max(map(len, output)) <= 80


def test_the_list_has_all_data_sets_on_lines_that_fit():
    output = lines("list")
    assert [line.split()[0] for line in output[1 : 1 + len(NAMES)]] == list(NAMES)
    assert output[0].split() == ["name", "files", "here", "size", "licence", "what"]
    assert max(map(len, output[: 1 + len(NAMES)])) <= 100
    (mptrj,) = [line for line in output if line.startswith("mptrj-json")]
    assert mptrj.split()[1:6] == ["1", "0", "12.2", "GB", "MIT"]


def test_the_list_for_programs_says_the_same():
    rows = json.loads("\n".join(lines("list", "--json")))
    assert [row["name"] for row in rows] == list(NAMES)
    assert [row["bytes"] for row in rows if row["bytes"]] == [12_188_168_685, 1_521_713_089]
    by_name = {row["name"]: row for row in rows}
    assert by_name["rmd17"]["commercial"] is True
    assert by_name["md22"]["commercial"] is not True
    assert all(row["here"] == 0 for row in rows)


@pytest.mark.parametrize("name", NAMES)
def test_all_that_is_known_is_shown(name):
    text = "\n".join(lines("show", name))
    source = table.get_source(name)
    assert " ".join(source.citation.split()) in " ".join(text.split())
    for key, file in source.files.items():
        assert key in text
        assert file.name in text
        assert all(url in text for url in file.urls)
        assert file.digest is None or f"{file.digest.hex}, " in text
    shown = json.loads("\n".join(lines("show", name, "--json")))
    assert [file["key"] for file in shown["in"]] == list(source.files)


def test_a_digest_of_third_hand_is_called_that():
    assert "md5 50ead5f27f9a4f6beb7564c4188f1e9f, from third hand" in "\n".join(lines("show", "mptrj-json"))
    assert "md5 f27d4c81da0e37d6547276bf6b4ae6a1, as published" in "\n".join(lines("show", "spice-1"))


@pytest.mark.parametrize("command", [["show", "md23"], ["fetch", "md23"]])
def test_an_unknown_name_comes_with_the_nearest(command):
    assert refusal(*command).startswith("zoo: 'md23' is no data set of zoo; nearest: md22")


def test_an_unknown_file_comes_with_the_nearest():
    assert "rmd17 has no file 'etanol'; nearest: ethanol" in refusal("fetch", "rmd17", "--file", "etanol")


def test_terms_and_size_are_said_before_anything_is_fetched(site):
    site.always = Trouble(status=404)
    output = ask("fetch", "small").output.splitlines()
    assert output[:3] == [
        "small: A small data set",
        "licence: CC0-1.0; with a note (https://example.org/terms)",
        "to fetch: 2 of 2 files, whose size nobody states",
    ]
    assert "to fetch: 1 of 1 file, 100.0 kB" in ask("fetch", "small", "--file", "one").output


def test_a_data_set_is_fetched_verified_and_found(site):
    output = lines("fetch", "small")
    folder = Path(json.loads("\n".join(lines("show", "small", "--json")))["in"][0]["path"]).parent
    assert output[-2:] == [f"one is in {folder / 'a.npz'}", f"two is in {folder / 'b.zip'}"]
    assert [seen.path for seen in site.seen] == ["/a.npz", "/b.zip"]
    assert lines("list")[1].split()[:5] == ["small", "2", "2", "200.0", "kB"]
    shown = "\n".join(lines("show", "small"))
    assert "holds one (1,234 frames, 9 atoms)" in shown
    assert "holds two, three" in shown
    assert shown.count("of the copy here") == 2
    assert "to fetch: 0 of 2 files" in "\n".join(lines("fetch", "small"))
    assert len(site.seen) == 2


def test_one_file_is_fetched_where_one_is_named(site):
    lines("fetch", "small", "--file", "three", "--file", "two")
    assert [seen.path for seen in site.seen] == ["/b.zip"]


def test_data_in_another_folder_are_found_once_it_is_named(site, tmp_path, monkeypatch):
    output = lines("fetch", "small", "--file", "one", "--to", "there")
    assert output[-1] == f"To use what is there: export ZOO_DATA={tmp_path / 'there'}"
    assert lines("list")[1].split()[:3] == ["small", "2", "0"]
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "there"))
    assert lines("list")[1].split()[:3] == ["small", "2", "1"]
    assert lines("fetch", "small", "--file", "one")[-1] == f"one is in {tmp_path / 'there' / 'small' / 'a.npz'}"
    assert len(site.seen) == 1


def test_a_size_at_third_hand_is_called_that_and_a_file_of_another_is_taken_with_a_word(site, monkeypatch):
    text = (
        small(site)
        .model_dump_json()
        .replace('"bytes":100000,"bytes_seen":"publisher"', '"bytes":7,"bytes_seen":"index"')
    )
    source = Source.model_validate_json(text)
    monkeypatch.setattr(table, "sources", lambda: {"small": source})
    assert "a.npz, 7 B, a size from third hand" in "\n".join(lines("show", "small"))
    said = lines("fetch", "small", "--file", "one")[-1]
    assert said.endswith("a.npz; it has 100,000 bytes, 7 were stated")


def test_what_was_cut_goes_on_when_the_same_is_run_again(site):
    site.always = Trouble(cut=20_000)
    assert "run the same again" in refusal("fetch", "small", "--file", "one")
    assert site.sent == 40_000
    site.always = None
    lines("fetch", "small", "--file", "one")
    assert site.sent == 100_000


def test_another_file_on_the_site_can_be_accepted(site):
    path = lines("fetch", "small", "--file", "two")[-1].removeprefix("two is in ")
    Path(path).unlink()
    site.put(content(100_000, seed=1), "b.zip")
    assert "which was recorded here on first use" in refusal("fetch", "small", "--file", "two")
    lines("fetch", "small", "--file", "two", "--accept-digest")
    assert "accepted" in "\n".join(lines("show", "small"))


def test_without_a_network_only_what_is_here_is_fetched(site, monkeypatch):
    lines("fetch", "small", "--file", "one")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines("fetch", "small", "--file", "one")
    result = ask("fetch", "small")
    assert (result.exit_code, len(result.output.splitlines())) == (1, 1)
    assert "b.zip of small is not here, and HF_HUB_OFFLINE is set; unset it, or copy the file to" in result.output
    assert len(site.seen) == 1


def test_list_and_show_ask_nobody(site, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *to: pytest.fail("asked"))
    lines("list")
    lines("show", "small")
    assert site.seen == []


def test_a_folder_that_cannot_be_written_to_is_one_line(site, tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert "choose another folder" in refusal("fetch", "small", "--to", tmp_path / "file" / "data")


def test_wrong_usage_exits_with_two():
    for arguments in (["fetch"], ["list", "--jason"], ["show"], ["steal"]):
        assert ask(*arguments).exit_code == 2
