"""The gallery: what it shows, what it refuses, and that nothing of a stranger runs in it or leaves its place."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from zoo.errors import ConfigError
from zoo.gallery import MARKER, Page, write_gallery
from zoo.markdown import MAX_SHOWN

PNG = b"\x89PNG\r\n\x1a\n" + bytes(16)
CARD = """---
license: mit
---

# family/student

Knows `Si`. See [paper](https://example.org/?a=1&b=2) and [recipe](recipe.yaml).

|        | student |
| ------ | ------: |
| forces |   114.4 |

```python
print("<&>")
```

![Forces.](figures/parity.png)
"""
HOSTILE = """# <script>alert(1)</script>

<script src="https://evil.example/x.js"></script> <img src=x onerror=alert(1)>

<style>body { display: none }</style>

[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](data:text/html,x) [d](../../../etc/passwd) [e](file:///etc/passwd)
[f](//evil.example/x) [g](https://evil.example/"onmouseover="alert(1)) <javascript:alert(1)> [h](vbscript:x) [i](#x)
[t](https://example.org "&#x202e; onclick=x")
[j](  &#106;avascript:alert(1)) [k](java&#10;script:x) [l](data:image/png;base64,AAAA)

![x](https://evil.example/spy.png) ![" onerror="alert(1)](figures/parity.png) ![y](figures/../../x.png)
![z](javascript:alert(1)) ![w](data:image/png;base64,AAAA)

```"><script>alert(1)</script>
</code></pre><script>alert(1)</script>
```

| <script>alert(1)</script> |
| :------: |
| `<script>` |

&lt;script&gt;alert(1)&lt;/script&gt; $title ${policy} {name} \x1b[31m \u202e &#x202e; <https://example.org/%1b%e2%80%ae>

~~~a&#x202e;b
x
~~~
"""


def _row(name: str, **facts: Any) -> dict[str, Any]:
    published = {
        "status": "published",
        "version": "v1",
        "commit": "c" * 40,
        "repository": "zoo/" + name.replace("/", "_"),
    }
    common = {"purpose": "A purpose", "elements": ["Si"], "licence_code": "MIT", "licence_weights": "MIT"}
    return {"name": name, "commercial": True, "metrics": {}, "hub": "huggingface.co"} | published | common | facts


@pytest.fixture
def pages(tmp_path: Path) -> list[Page]:
    figure = tmp_path / "parity.png"
    figure.write_bytes(PNG)
    metrics = {"force_mae_meV_A": 114.354, "energy_mae_meV_atom": 2.3, "unheard_of": 1.0}
    student = _row("family/student", metrics=metrics, parameters=54_243, teacher="family/teacher", subset="silicon")
    oxide = _row(
        "other/oxide", elements=["O", "Si"], parameters=9_000, commercial=False, metrics={"force_mae_meV_A": 21}
    )
    teacher = {
        "name": "family/teacher",
        "status": "package",
        "elements": ["H", "He", "C", "N", "O"],
        "commercial": None,
    }
    return [
        Page(student, CARD, {"figures/parity.png": figure}),
        Page(oxide, CARD),
        Page(teacher),
    ]


class _Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_page_a_card_with_its_figures_beside_it(tmp_path: Path, pages: list[Page]) -> None:
    index = write_gallery(tmp_path / "site", pages, title="Engines")
    assert index == tmp_path / "site/index.html"
    expected = {"index.html", "gallery.css", "gallery.js", MARKER, "other/oxide.html", "family/student.html"}
    assert set(_content(index.parent)) == expected | {"family/student_figures/parity.png"}
    page = (index.parent / "family/student.html").read_text()
    assert 'src="student_figures/parity.png" alt="Forces."' in page
    assert "license: mit" not in page
    assert page.count("family/student</h1>") == 1
    assert "zoo.load(&quot;family/student@v1&quot;, namespace=&quot;zoo&quot;)" in page
    assert (
        '<a href="https://huggingface.co/zoo/family_student" rel="noopener noreferrer">zoo/family_student</a>' in page
    )
    assert "c" * 40 in page
    assert '<td class="number">114.4</td>' in page
    assert "print(&quot;&lt;&amp;&gt;&quot;)" in page
    assert "[figure: Forces.]" in (index.parent / "other/oxide.html").read_text()


def test_the_table_has_a_row_an_engine_and_a_column_a_known_fact(tmp_path: Path, pages: list[Page]) -> None:
    html = write_gallery(tmp_path / "site", pages, title="Engines").read_text()
    keys = re.findall(r'data-key="(\w+)"', html)
    assert keys[:8] == ["name", "status", "teacher", "subset", "elements", "licence", "commercial", "parameters"]
    assert keys[8:] == ["force_mae_meV_A", "energy_mae_meV_atom", "version"]
    rows = re.findall(r"<tr data-.*</tr>", html)
    assert _shown(html) == ["family/student", "family/teacher", "other/oxide"]
    assert 'data-sort="54243">54,243<' in rows[0]
    assert 'data-sort="114.354">114.4<' in rows[0]
    assert '<a href="family/student.html">' in rows[0]
    assert "<summary>5 elements</summary>" in rows[1]
    assert "<a " not in rows[1]
    assert 'data-elements="O Si" data-status="published" data-commercial="no"' in rows[2]


def test_a_hub_of_ones_own_is_in_the_command_unless_it_holds_a_password(tmp_path: Path) -> None:
    hubs = {"a/one": "http://hub.local:8080", "a/two": "/data/hub", "a/three": "https://user:secret@hub.local"}
    pages = [Page(_row(name, hub=hub), "card") for name, hub in hubs.items()]
    folder = write_gallery(tmp_path / "site", pages, title="Engines").parent
    one, two, three = ((folder / f"{name}.html").read_text() for name in hubs)
    assert "hub=&quot;http://hub.local:8080&quot;" in one
    assert 'href="http://hub.local:8080/zoo/a_one"' in one
    assert "hub=&quot;/data/hub&quot;, namespace=&quot;zoo&quot;" in two
    assert "secret" not in three


def test_it_loads_only_its_own_files_and_nothing_is_inline(tmp_path: Path, pages: list[Page]) -> None:
    index = write_gallery(tmp_path / "site", pages, title="Engines")
    for page in (path for path in index.parent.rglob("*.html")):
        tags = _Tags(page.read_text()).tags
        policy = next(attrs["content"] for tag, attrs in tags if "http-equiv" in attrs)
        assert policy.startswith("default-src 'none'; script-src 'self'")
        assert "unsafe" not in policy
        loaded = [attrs.get("src") or attrs["href"] for tag, attrs in tags if tag in ("script", "link", "img")]
        assert {"gallery.css", "gallery.js"} <= {Path(source).name for source in loaded}
        assert all((page.parent / source).is_file() for source in loaded)
        assert not any("style" in attrs or tag == "style" for tag, attrs in tags)


def test_without_a_script_there_is_a_plain_table(tmp_path: Path, pages: list[Page]) -> None:
    html = write_gallery(tmp_path / "site", pages, title="Engines").read_text()
    assert '<form id="filters" role="search" hidden>' in html
    assert "<button" not in html.partition("<table")[2]


_TAGS = """a b body button code dd details div dl dt em footer form h1 h2 head header html img input label link main
    meta nav option output p pre script select span summary table tbody td th thead title tr"""


def _check_harmless(html: str) -> None:
    assert {tag for tag, _ in _Tags(html).tags} <= set(_TAGS.split())
    for tag, attrs in _Tags(html).tags:
        assert not any(key.startswith("on") or key == "style" for key in attrs)
        assert tag != "script" or attrs["src"].endswith("gallery.js")
        assert re.fullmatch(r"https?://[^/].*|(\.\./)?[a-z][\w./-]*|", attrs.get("href", ""))
        assert re.fullmatch(r"(\.\./)?[a-z][\w./-]*|", attrs.get("src", ""))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", html)


def test_a_hostile_card_is_only_text(tmp_path: Path, pages: list[Page]) -> None:
    page = Page(_row("evil/engine"), HOSTILE, pages[0].figures)
    folder = write_gallery(tmp_path / "site", [page], title="Engines").parent
    html = (folder / "evil/engine.html").read_text()
    _check_harmless(html)
    assert "&lt;script src=&quot;https://evil.example/x.js&quot;&gt;" in html
    assert html.count("<img") == 1
    assert "[figure: x]" in html
    assert "$title ${policy} {name}" in html


def test_a_hostile_row_is_only_text(tmp_path: Path) -> None:
    bad = "\"'><script>alert(1)</script>\x1b[31m\u202e\n" + "x" * 100_000
    texts = dict.fromkeys(("status", "purpose", "teacher", "subset", "licence_code", "licence_weights"), bad)
    lineage = dict.fromkeys(("repository", "version", "commit", "hub"), bad)
    numbers = {"parameters": "<b>", "metrics": {"force_mae_meV_A": float("nan"), bad: 1.0, "ms_per_call": 10**400}}
    rows = [
        _row("evil/texts", **texts, **lineage, **numbers, elements=["Si", bad, None, "<b>"], commercial=bad),
        _row("evil/kinds", **{key: ["Si"] for key in (*texts, *lineage)}, elements="Si", metrics=[1], parameters=True),
        _row("evil/hub", hub="javascript:alert(1)//", repository="../../x"),
    ]
    folder = write_gallery(tmp_path / "site", [Page(row, "card") for row in rows], title=bad).parent
    for path in folder.rglob("*.html"):
        html = path.read_text()
        _check_harmless(html)
        assert len(html) < 50_000
    assert "javascript:" not in re.sub("&quot;javascript:.*?&quot;", "", (folder / "evil/hub.html").read_text())


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../b",
        "/etc/passwd",
        "a/b/c",
        "a",
        "",
        "a/b\n",
        "A/B",
        "a/b@v1",
        "a/.b",
        "index.html/x",
        "gallery.js/x",
        None,
        3,
    ],
)
def test_a_name_outside_the_law_is_refused(tmp_path: Path, name: Any) -> None:
    with pytest.raises(ConfigError, match="an engine called"):
        write_gallery(tmp_path / "site", [Page({"name": name}, "card")], title="Engines")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "key",
    [
        "figures/../x.png",
        "x.png",
        "/figures/x.png",
        "figures/x.svg",
        "figures/a/b.png",
        "figures/.png",
        "figures/x.png\n",
    ],
)
def test_a_figure_outside_the_law_is_refused(tmp_path: Path, pages: list[Page], key: str) -> None:
    figure = pages[0].figures["figures/parity.png"]
    with pytest.raises(ConfigError, match=r"a/b: a figure .*expected figures/NAME\.png"):
        write_gallery(tmp_path / "site", [Page(_row("a/b"), "card", {key: figure})], title="Engines")
    assert [path.name for path in tmp_path.iterdir()] == ["parity.png"]


def test_an_engine_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a/b is given 2 times"):
        write_gallery(tmp_path / "site", [Page(_row("a/b")), Page(_row("a/b"))], title="Engines")


def test_what_cannot_be_shown_is_said_and_the_rest_is_there(tmp_path: Path) -> None:
    fake = tmp_path / "fake.png"
    fake.write_text("<script>alert(1)</script>")
    pages = [Page(_row("a/fake"), CARD, {"figures/parity.png": fake}), Page(_row("a/long"), "x" * (MAX_SHOWN + 1))]
    folder = write_gallery(tmp_path / "site", pages, title="Engines").parent
    assert not list(folder.rglob("*.png"))
    assert "[figure: Forces.]" in (folder / "a/fake.html").read_text()
    assert "This card is not shown: a card of" in (folder / "a/long.html").read_text()


def test_two_runs_give_the_same_bytes_and_what_is_gone_goes(tmp_path: Path, pages: list[Page]) -> None:
    folder = write_gallery(tmp_path / "site", pages, title="Engines").parent
    first = _content(folder)
    write_gallery(folder, pages[::-1], title="Engines")
    assert _content(folder) == first
    write_gallery(folder, pages[2:], title="Engines")
    assert set(_content(folder)) == {"index.html", "gallery.css", "gallery.js", MARKER}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parity.png", "site"]


def test_only_an_empty_folder_or_a_gallery_is_replaced(tmp_path: Path, pages: list[Page]) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    write_gallery(folder, pages, title="Engines")
    (folder / "CNAME").write_text("mine")
    before = _content(folder)
    with pytest.raises(ConfigError, match="holds 'CNAME', which zoo gallery did not write; move it away"):
        write_gallery(folder, pages, title="Other")
    with pytest.raises(ConfigError, match="is a file; expected a folder"):
        write_gallery(folder / "CNAME", pages, title="Engines")
    assert _content(folder) == before


def test_a_link_in_a_gallery_is_not_followed_and_not_removed(tmp_path: Path, pages: list[Page]) -> None:
    folder = write_gallery(tmp_path / "site", pages, title="Engines").parent
    (tmp_path / "mine").mkdir()
    (folder / "family/mine").symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match="holds 'family/mine'"):
        write_gallery(folder, pages, title="Engines")


def test_a_gallery_that_fails_leaves_the_old_one(tmp_path: Path, pages: list[Page]) -> None:
    folder = write_gallery(tmp_path / "site", pages, title="Engines").parent
    before = _content(folder)
    gone = Page(_row("a/b"), "card", {"figures/x.png": tmp_path / "gone.png"})
    with pytest.raises(FileNotFoundError):
        write_gallery(folder, [*pages, gone], title="Engines")
    assert _content(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parity.png", "site"]


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(
    tmp_path: Path, pages: list[Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_gallery(tmp_path / "site", pages, title="Engines").parent
    before, rename = _content(folder), Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.suffix == ".tmp":
            raise OSError("no room")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no room"):
        write_gallery(folder, pages[:1], title="Engines")
    assert _content(folder) == before


def _browser_dom(index: Path, state: str, profile: Path) -> str:
    """The page as a browser makes it from a file, with a state in its address."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium: apt-get install chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom"]
    command = [browser, *options, f"{index.as_uri()}#{state}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def _shown(html: str) -> list[str]:
    """The names in the rows that are not hidden, in their order."""
    return re.findall(r'<tr data-(?:[^>](?! hidden))*><td class="name" data-label="name" data-sort="([^"]*)"', html)


def test_a_browser_sorts_and_filters_as_the_address_says(tmp_path: Path, pages: list[Page]) -> None:
    index = write_gallery(tmp_path / "site", pages, title="Engines")
    profile = tmp_path / "profile"
    silicon = _browser_dom(index, "element=si&sort=parameters", profile)
    assert _shown(silicon) == ["other/oxide", "family/student"]
    assert "2 of 3 engines" in silicon
    assert re.search(r'data-key="parameters"[^>]* aria-sort="ascending"', silicon)
    falling = _browser_dom(index, "sort=force_mae_meV_A&order=descending", profile)
    assert _shown(falling) == ["family/student", "other/oxide", "family/teacher"]
    assert _shown(_browser_dom(index, "commercial=unknown&status=package", profile)) == ["family/teacher"]
    assert _shown(_browser_dom(index, "text=silicon", profile)) == ["family/student"]


def test_a_click_sorts_and_the_address_remembers(tmp_path: Path, pages: list[Page]) -> None:
    index = write_gallery(tmp_path / "site", pages, title="Engines")
    with (index.parent / "gallery.js").open("a") as script:
        script.write("""
            const head = document.querySelector("th[data-key=parameters] button");
            head.click();
            head.click();
            form.elements.element.value = "Si";
            form.elements.element.dispatchEvent(new Event("input", { bubbles: true }));
            document.title = location.hash;
        """)
    dom = _browser_dom(index, "", tmp_path / "profile")
    assert _shown(dom) == ["family/student", "other/oxide"]
    assert 'aria-sort="descending"' in dom
    assert "<title>#element=Si&amp;sort=parameters&amp;order=descending</title>" in dom


def test_nothing_of_a_card_runs_in_a_browser(tmp_path: Path, pages: list[Page]) -> None:
    script = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
    row = _row("evil/engine", purpose=script)
    index = write_gallery(tmp_path / "site", [Page(row, script + HOSTILE, pages[0].figures)], title="Engines")
    for path in (index, index.parent / "evil/engine.html"):
        assert "<title>run" not in _browser_dom(path, "", tmp_path / "profile")
    assert 'class="copy"' in _browser_dom(index.parent / "evil/engine.html", "", tmp_path / "profile")
