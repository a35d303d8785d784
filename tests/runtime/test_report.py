"""``python -m jaxhybrid report``: one file that shows everything, loads nothing and trusts nobody."""

import base64
import html.parser
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import compare, page, report, report_figures
from jaxhybrid.runtime.curves import Curve
from tests.runtime import runs, toy
from tests.runtime.test_policies import save

EVIL = '<script>alert("1")</script>&$\\frac{$'
VOID = {"meta", "img", "source"}


class Page(html.parser.HTMLParser):
    """Checks that tags are closed, and collects them with the text between them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.attributes, self.text = [], set(), [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += f"{data} "


def write(directory, rows, **options):
    run = runs.write(directory, rows, **options)
    save(run / "policy")
    return run


def page_of(run, *options):
    assert report.main([str(run), *options]) == 0
    return Page((run / "report.html").read_text())


def row(i, **metrics):
    clock = {"time/elapsed": 2.0 * i, "time/iteration": 2.0}
    return {"iteration": i, "env/steps": [100 * i] * 2, **clock, **metrics}


ROWS = [
    row(0, **{"eval/return": [1.0, 3.0]}),
    row(1, **{"actor/grad_norm": [np.nan, np.nan], "guard/nonfinite": [0, 4], "model/validation_loss": [0.1, 0.2]}),
    row(2, **{"actor/grad_norm": [1e-3, 1.0], "guard/nonfinite": [0, 5], "eval/return": [10.0, 30.0]}),
]


def test_it_shows_a_run(tmp_path):
    run = write(tmp_path / "run", ROWS, env="pendulum", seeds=2, horizon=7)
    (run / "checkpoints" / "00000002").mkdir(parents=True)
    (run / "checkpoints" / "00000001.damaged").mkdir()
    page = page_of(run)
    text = " ".join(page.text.split())
    assert "toy on pendulum" in text and "20 ± 14.1 final evaluation return" in text  # (10, 30): std = 20 / sqrt(2)
    assert "4.0 s training time" in text and "compilation not recorded" in text
    for name in ("eval/return", "actor/grad_norm", "model/validation_loss", "guard/nonfinite"):
        assert name in text
    assert "horizon 7" in text and "versions.jax" in text and "reproducibility.level" in text
    assert "damaged, set aside" in text and "One episode of seed 3: return" in text


def test_it_loads_nothing(tmp_path):
    run = write(tmp_path / "run", ROWS, env="pendulum", seeds=2)
    page = page_of(run)
    assert page.seen.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form", "a"})
    sources = [value for name, value in page.attributes if name in ("src", "srcset", "href")]
    assert sources and all(re.match(r"data:image/(svg\+xml|gif);base64,[\w+/=]+$", source) for source in sources)
    assert any("default-src 'none'" in (value or "") for _, value in page.attributes)
    for source in sources:
        content = base64.b64decode(source.partition(",")[2], validate=True)
        if source.startswith("data:image/svg"):
            for element in ElementTree.fromstring(content).iter():
                assert not element.tag.endswith(("script", "image", "foreignObject"))
                links = [value for name, value in element.attrib.items() if name.endswith("href")]
                assert all(link.startswith("#") for link in links)


def test_what_comes_from_files_is_text(tmp_path):
    run = write(tmp_path / "run", [*ROWS, row(3, **{EVIL: 1.0, "critic/q": EVIL})], env=EVIL, seeds=2, note=EVIL)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["sessions"].append({"started": EVIL, "versions": {EVIL: None}})
    manifest["sessions"].append(EVIL)
    (run / "manifest.json").write_text(json.dumps(manifest))
    page = page_of(run, "--no-episode")
    assert "script" not in page.seen and page.text.count(EVIL) >= 4


def test_a_run_that_diverged_does_not_look_fine(tmp_path):
    rows = [*ROWS, row(3, **{"guard/nonfinite": [0, 6], "eval/return": [-np.inf, 5.0]})]
    text = " ".join(page_of(runs.write(tmp_path / "run", rows, seeds=2), "--no-episode").text.split())
    assert "not finite final evaluation return, mean ± std over all runs" in text
    assert "6 updates refused" in text


def test_a_run_in_processes_shows_what_its_parts_keep(tmp_path):
    run = runs.write(tmp_path / "run", ROWS, seeds=2)
    for seed in (10, 2):
        part = runs.write(run / f"gamma=0.9-seed-{seed}", [])
        (part / "checkpoints" / "00000002").mkdir(parents=True)
    (part / "capsule-00000003").mkdir()
    text = " ".join(page_of(run, "--no-episode").text.split())
    first = "gamma=0.9-seed-2 2 0.00 MiB gamma=0.9-seed-2 capsule-00000003 from before a failure"
    assert f"part iteration size {first} gamma=0.9-seed-10 2 0.00 MiB" in text


@pytest.mark.parametrize("rows", [[], [{"iteration": 0, "env/steps": 0}], [{"iteration": 0}]])
def test_a_run_that_has_just_begun_has_a_page(tmp_path, rows):
    run = runs.write(tmp_path / "run", rows)
    text = page_of(run).text
    assert "No return is recorded yet" in text and "has no policy" in text and "There are none." in text


def test_an_episode_that_cannot_be_played_says_why(tmp_path):
    run = runs.write(tmp_path / "run", ROWS)
    save(run / "policy", spec=toy.env().spec._replace(obs_dim=3))
    assert "env='toy' is unknown" in page_of(run).text


@pytest.fixture
def drawn(monkeypatch):
    """The curves of every figure."""
    found = []
    real = report_figures.lines
    monkeypatch.setattr(report_figures, "lines", lambda curves, **size: found.append(curves) or real(curves, **size))
    return found


def test_speed_is_steps_over_seconds_of_all_seeds(tmp_path, drawn):
    run = runs.write(tmp_path / "run", ROWS, seeds=2)
    page_of(run, "--no-episode")
    (speed,) = (each for curves in drawn if (each := curves.get("environment steps per second")))
    # 100 steps of two seeds in two seconds.
    np.testing.assert_array_equal(speed.values, [[100.0], [100.0]])


def test_the_speed_of_a_run_that_collects_nothing_is_that_of_its_iterations(tmp_path, drawn):
    rows = [row | {"time/iteration": 0.5} for row in runs.batch_rows(1.0, 2.0, 3.0)]
    page_of(runs.write(tmp_path / "run", rows), "--no-episode")
    (speed,) = (each for curves in drawn if (each := curves.get("iterations per second")))
    np.testing.assert_array_equal(speed.values, [[2.0], [2.0]])
    assert {curve.axis for curves in drawn for curve in curves.values()} == {"iterations"}


def test_the_speed_of_processes_is_the_sum_of_theirs(tmp_path, drawn):
    rows = [row(i, **{"time/iteration": [2.0, 4.0]}) for i in range(2)]
    page_of(runs.write(tmp_path / "run", rows, seeds=2), "--no-episode")
    # 100 steps in two seconds, and 100 in four.
    assert drawn[0]["environment steps per second"].values.tolist() == [[75.0]]


def test_figures_are_the_same_bytes_again_and_differ_by_theme():
    # With two curves there is a legend, in which the name must not be read as a formula.
    curve = Curve(np.array([0.0, 1.0]), np.array([[1.0, 2.0], [1000.0, 3000.0]]))
    curves = {EVIL: curve, "plain": curve}
    light, dark = report_figures.lines(curves, size=(3.0, 2.0))
    assert (light, dark) == report_figures.lines(curves, size=(3.0, 2.0)) and light != dark


def test_a_page_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    run = runs.write(tmp_path / "run", ROWS)
    out = run / "report.html"
    monkeypatch.setattr(page, "page", lambda *_: out.write_bytes(b"another") and "mine")
    with pytest.raises(InputError, match=r"out='.*report.html' was written by somebody else meanwhile"):
        report.main([str(run), "--no-episode"])
    assert out.read_bytes() == b"another"


def test_a_broken_manifest_is_refused_by_the_name_of_the_argument(tmp_path):
    run = runs.write(tmp_path / "run", ROWS)
    (run / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"^run=.* has a manifest.json that"):
        report.main([str(run), "--no-episode"])


def test_a_run_whose_members_have_not_ended_names_one_of_them(tmp_path):
    run = runs.write(tmp_path / "run", [], seeds=2)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match=r"^run=.* has no records yet"):
        report.main([str(run)])
    runs.write(run / "seed-1", ROWS)
    for main, field in ((report.main, "run"), (compare.main, "runs")):
        with pytest.raises(InputError, match=rf"^{field}=.*have not ended: name one of its parts, such as '.*/seed-1'"):
            main([str(run)])


def test_bad_input_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="is no run"):
        report.main([str(tmp_path)])
    run = runs.write(tmp_path / "run", ROWS, seeds=2)
    assert report.main([str(run), "--no-episode"]) == 0
    content = (run / "report.html").read_bytes()
    with pytest.raises(InputError, match="exists"):
        report.main([str(run), "--no-episode"])
    assert (run / "report.html").read_bytes() == content
