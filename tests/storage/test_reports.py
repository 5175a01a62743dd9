import base64
import csv
import dataclasses
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from storage.reports import curves, figures
from storage.reports.contents import (
    ConstantRow,
    CountRow,
    DetectorResult,
    DifferenceRow,
    Extremes,
    ExtremeSample,
    GallerySample,
    MetricRow,
    PValueRow,
    Report,
    SlideOverview,
    SubgroupRow,
    Threshold,
)
from storage.reports.figures import LearningCurve, draw_samples
from storage.reports.numbers import metrics_as_csv, metrics_as_json
from storage.reports.page import render_html

HOSTILE = '</script><script>alert("x")</script>'


class PageReader(HTMLParser):
    """Every start tag with its attributes, and the text of every script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script":
            self.scripts[-1] += data


def make_detector(name: str, *, auroc: float = 0.9375) -> DetectorResult:
    curve = (np.array([0.0, 0.0, 0.5, 1.0]), np.array([0.0, 0.5, 0.75, 1.0]))
    grid = np.array([0.0, 0.5, 1.0])
    band = (grid, np.array([0.0, 0.25, 1.0]), np.array([0.125, 0.875, 1.0]))
    came = [MetricRow("image", "specificity", 0.9, 0.8, 1.0)]
    far = ExtremeSample("x1", "pen", 3.5, np.zeros((6, 8, 3), np.uint8))
    return DetectorResult(
        name=name,
        kind="features",
        metrics=[
            MetricRow("image", "AUROC", auroc, 0.8125, 1.0),
            MetricRow("pixel", "Dice", 0.625, note="no interval: one subject"),
            MetricRow("pixel", "IoU", None, note="undefined: no annotated pixel"),
        ],
        thresholds=[Threshold("image", "95 % specificity", 2.125, "quantile of normals", "validation", came, "specificity 0.950")],
        roc={"image": curve, "pixel": curve},
        pr={"image": (np.array([1.0, 0.5, 0.0]), np.array([0.25, 0.5, 1.0]))},
        scores_normal=np.array([1.0, 1.25, 1.5], np.float32),
        scores_abnormal=np.array([2.0, 3.5], np.float32),
        colour_range=(1.0, 4.0),
        p_values=[PValueRow("gamma", 0.05, 0.0625, 0.5), PValueRow("tail", None, None, None, "too few scores")],
        training_samples=draw_samples(["normal"], np.zeros((1, 8, 8, 3)), None, np.zeros((1, 8, 8))),
        subgroups=[
            SubgroupRow("site", "hand", 5, 7, 3, [MetricRow("image", "AUROC", 0.875, 0.75, 1.0, sd=0.0625, method="BCa")]),
            SubgroupRow("site", "scalp", 2, 4, 0, [], "undefined without abnormal items"),
        ],
        reliability=[(8, 0.25, 2), (2, 0.75, 1)],
        unscored={"pending": 0, "failed": 3},
        roc_bands={"image": band},
        pr_bands={"image": band},
        prevalence={"image": 0.4, "pixel": 0.0625},
        extremes=[Extremes("abnormal", "highest", [far])],
    )


def make_report(**changes: object) -> Report:
    rng = np.random.default_rng(0)
    mask = np.zeros((48, 64), bool)
    mask[10:20, 30:50] = True
    image = rng.integers(0, 256, (48, 64, 3), np.uint8)
    maps = {name: rng.uniform(1, 4, (48, 64)).astype(np.float32) for name in ("memory", "autoencoder")}
    called = {name: values >= 2.125 for name, values in maps.items()}
    report = Report(
        title="Two detectors",
        painted=True,
        generated_note="Strokes are painted into real tissue.",
        run={"Seed": "7", "Configuration": "a: 1\nb: 2"},
        counts=[CountRow("test", "abnormal", 2, 1, excluded={"blurred": 3}, failed={"truncated": 1})],
        detectors=[make_detector("memory"), make_detector("autoencoder", auroc=0.5625)],
        gallery=[GallerySample("s1", "x 1 y 2", "abnormal", "pen", image, mask, maps, "Abnormal, highest", {"memory": image}, called)],
        slides=[SlideOverview("slide-1", "p1", "test", "abnormal", "pen", 0.5, 6400, 4800, image, mask, maps)],
        n_subjects=11,
        n_resamples=2000,
        constants=[
            ConstantRow("everything normal", "image", "accuracy", 0.25),
            ConstantRow("everything abnormal", "image", "accuracy", 0.75),
            ConstantRow("everything abnormal", "image", "AUROC", 0.5),
        ],
        differences=[DifferenceRow("memory", "autoencoder", MetricRow("image", "AUROC", 0.375, 0.125, 0.5, method="BCa"))],
        unpaired="third was measured on other samples.",
    )
    return dataclasses.replace(report, **changes)


@pytest.fixture(scope="module")
def html() -> str:
    return render_html(make_report())


def decode_picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


def test_a_million_scores_are_thinned_to_even_ranks_and_counted_whole() -> None:
    rng = np.random.default_rng(0)
    many = rng.gamma(2.0, size=1_000_001).astype(np.float32)
    detector = dataclasses.replace(make_detector("memory"), scores_normal=many)
    numbers = json.loads(metrics_as_json(dataclasses.replace(make_report(), detectors=[detector], gallery=[], slides=[], differences=[])))
    found = numbers["detectors"][0]
    assert found["scored"] == {"normal": 1_000_001, "abnormal": len(detector.scores_abnormal)}
    assert found["scores"]["abnormal"] == [2.0, 3.5]
    thinned = np.array(found["scores"]["normal"])
    assert len(thinned) == 10_000
    shares = np.linspace(0, 1, 10_000)
    np.testing.assert_allclose(thinned, np.quantile(many, shares), rtol=1e-3)
    assert thinned[[0, -1]] == pytest.approx([many.min(), many.max()], rel=1e-5)


def test_page_asks_for_nothing_outside_itself(html):
    page = PageReader(html)
    sources = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href", "xlink:href")]
    assert len(sources) > 8
    assert [source for source in sources if not source.startswith(("data:", "#"))] == []
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert [key for _, attributes in page.tags for key in attributes if key.startswith("on")] == []


def test_embedded_numbers_are_the_json_of_the_report(html):
    assert json.loads(PageReader(html).scripts[0]) == json.loads(metrics_as_json(make_report()))


def test_table_shows_values_intervals_and_the_reason_where_there_is_none(html):
    for text in (
        "0.938",
        "[0.812, 1.000]",
        "no interval: one subject",
        "undefined: no annotated pixel",
        "11 test subjects",
        "2 000 resamples",
    ):
        assert text in html


def test_names_are_escaped_everywhere():
    report = make_report()
    sample = dataclasses.replace(report.gallery[0], sample_id=HOSTILE, finding=HOSTILE, caption=HOSTILE, label=HOSTILE, group=HOSTILE)
    far = dataclasses.replace(report.detectors[0].extremes[0].samples[0], sample_id=HOSTILE, finding=HOSTILE)
    slide = dataclasses.replace(report.slides[0], slide_id=HOSTILE, subject_id=HOSTILE)
    detector = dataclasses.replace(make_detector(HOSTILE), kind=HOSTILE, operating=HOSTILE, extremes=[Extremes(HOSTILE, "lowest", [far])])
    named = {HOSTILE: HOSTILE}
    hostile = make_report(
        title=HOSTILE,
        generated_note=HOSTILE,
        run=named,
        gallery=[sample],
        slides=[slide],
        detectors=[*report.detectors, detector],
    )
    scripts = PageReader(render_html(hostile)).scripts
    assert len(scripts) == 2
    assert json.loads(scripts[0])["slides"][0]["slide_id"] == HOSTILE


def test_painted_anomalies_are_announced_and_real_ones_are_not(html):
    assert "Painted anomalies." in html
    assert "Painted anomalies." not in render_html(make_report(painted=False, generated_note=None))
    generated = render_html(make_report(generated_note="The data are GENERATED."))
    assert "<strong>GENERATED data.</strong> The data are GENERATED." in generated
    assert "Painted anomalies." not in generated
    with pytest.raises(ValueError, match="generated_note"):
        make_report(generated_note=None)


def test_a_classifier_is_said_to_have_learned_from_abnormal_samples_too(html):
    assert "that learned from normal samples only." in html
    classifier = replace(make_detector("taught"), trained_on_abnormal=7)
    mixed = render_html(make_report(detectors=[make_detector("autoencoder"), make_detector("memory"), classifier]))
    assert "that learned from normal samples." in mixed
    assert "taught also learned from 7 abnormal ones." in mixed


def test_same_report_gives_the_same_bytes(html):
    assert render_html(make_report()) == html


def test_ids_are_unique_in_the_page(html):
    ids = [attributes["id"] for _, attributes in PageReader(html).tags if "id" in attributes]
    assert sorted(set(ids)) == sorted(ids)


def test_every_picture_has_alternative_text(html):
    images = [attributes for tag, attributes in PageReader(html).tags if tag == "img"]
    assert images
    assert all(attributes["alt"] for attributes in images)


def test_report_without_slides_masks_or_intervals_renders():
    page = render_html(make_report(gallery=[], slides=[], counts=[], n_subjects=None))
    assert 'id="slides"' not in page
    assert 'id="metrics"' in page
    assert 'id="metrics"' not in render_html(make_report(gallery=[], slides=[], detectors=[]))


def test_slide_without_spacing_has_no_scale_bar(html):
    assert ">0.5 mm</span>" in html  # 6400 px at 0.5 µm are 3.2 mm
    unscaled = dataclasses.replace(make_report().slides[0], spacing_um=None)
    assert 'class="scale-bar"' not in render_html(make_report(slides=[unscaled]))


def test_page_shows_what_thresholds_and_p_values_came_to(html):
    section = html[html.index('<section id="thresholds">') :]
    section = section[: section.index("</section>")]
    assert "<td>specificity 0.950</td>" in section
    assert '0.900<span class="interval">[0.80, 1.00]</span>' in section
    assert '<td>gamma</td><td class="number">6.2 %</td><td class="number">50.0 %</td>' in section
    assert '<td>tail</td><td colspan="2" class="note">too few scores</td>' in section


def test_sections_and_their_entries_in_the_contents_are_the_same(html):
    contents = html[html.index("<nav") : html.index("</nav>")]
    assert re.findall(r'href="#([\w-]+)"', contents) == re.findall(r'<section id="([\w-]+)"', html)


def test_samples_have_a_row_for_the_reconstruction_only_where_there_is_one():
    images, maps = np.random.default_rng(0).uniform(size=(2, 16, 16, 3)), np.zeros((2, 16, 16))
    heights = [
        Image.open(io.BytesIO(draw_samples(["normal", "abnormal"], images, reconstructions, maps))).height
        for reconstructions in (None, images)
    ]
    assert heights == [280, 405]


def test_csv_holds_metrics_thresholds_and_counts():
    rows = list(csv.DictReader(io.StringIO(metrics_as_csv(make_report()))))
    found = {(row["section"], row["detector"], row["name"]): row for row in rows}
    assert float(found["metric", "autoencoder", "AUROC"]["value"]) == 0.5625
    assert found["metric", "memory", "Dice"]["low"] == ""
    assert float(found["threshold", "memory", "95 % specificity"]["value"]) == 2.125
    assert float(found["at threshold", "memory", "specificity"]["value"]) == 0.9
    assert float(found["p-value", "memory", "normal at 0.05"]["value"]) == 0.0625
    assert found["count", "", "test abnormal failed"]["note"] == "truncated"


def section_of(page: str, name: str) -> str:
    section = page[page.index(f'<section id="{name}">') :]
    return section[: section.index("</section>")]


def test_the_constant_answer_that_is_right_more_often_stands_beside_the_detectors_and_both_below_the_thresholds(html):
    section = section_of(html, "metrics")
    assert "Everything abnormal<small>constant answer</small>" in section
    assert '<td class="constant">0.500</td>' in section
    assert "Everything normal" not in section
    below = section_of(html, "thresholds")
    assert "calls everything normal" in below
    assert "accuracy 0.750" in below
    assert "<strong>memory</strong> has no score for 3 failed" in section


def test_differences_are_shown_with_their_intervals_and_bold_where_these_leave_out_zero(html):
    section = section_of(html, "differences")
    assert "memory − autoencoder" in section
    assert "<span class=value>+0.375</span>" in section
    assert "[+0.12, +0.50]" in section
    assert "third was measured on other samples." in section
    assert 'id="differences"' not in render_html(make_report(differences=[], unpaired=""))


def test_every_subgroup_has_its_n_and_no_number_where_its_metric_is_undefined(html):
    section = section_of(html, "subgroups")
    assert '<th scope="row">site: hand</th><td class="number">5</td><td class="number">7</td><td class="number">3</td>' in section
    assert "0.875" in section
    row = section[section.index("site: scalp") :]
    assert "undefined without abnormal items" in row[: row.index("</tr>")]
    assert "4 / 0, undefined" in section  # in the forest plot
    with pytest.raises(ValueError, match="no metrics: say why"):
        SubgroupRow("site", "hand", 5, 7, 3, [])


def test_files_hold_subgroups_differences_constants_and_reliability():
    rows = list(csv.DictReader(io.StringIO(metrics_as_csv(make_report()))))
    found = {(row["section"], row["detector"], row["group"], row["name"]): row for row in rows}
    auroc = found["subgroup", "memory", "site: hand", "AUROC"]
    assert (float(auroc["value"]), float(auroc["sd"]), auroc["method"]) == (0.875, 0.0625, "BCa")
    assert found["subgroup", "memory", "site: scalp", "abnormal samples"]["value"] == "0"
    assert float(found["difference", "memory - autoencoder", "", "AUROC"]["low"]) == 0.125
    assert float(found["constant answer", "everything normal", "", "accuracy"]["value"]) == 0.25
    numbers = json.loads(metrics_as_json(make_report()))
    assert numbers["differences"][0]["metric"]["value"] == 0.375
    assert numbers["detectors"][0]["subgroups"][0]["group"] == "hand"
    assert numbers["detectors"][0]["reliability"][1] == {"samples": 2, "mean_probability": 0.75, "abnormal": 1}
    assert numbers["detectors"][0]["unscored"] == {"pending": 0, "failed": 3}


def test_reliability_is_shown_of_probabilities_alone(html):
    assert 'id="reliability"' in html
    plain = [replace(detector, reliability=[]) for detector in make_report().detectors]
    assert 'id="reliability"' not in render_html(make_report(detectors=plain))


def test_bands_are_shaded_in_one_picture_of_few_detectors_and_in_one_each_of_many(html):
    section = section_of(html, "curves")
    assert "Shaded: pointwise 95&nbsp;% bands" in section
    assert section.count('<figure class="plot"') == 2  # image and pixel level
    assert section.count('id="image-curves-FillBetweenPolyCollection') == 4
    found = json.loads(metrics_as_json(make_report()))["detectors"][0]
    assert found["bands"]["roc"]["image"] == {"false_positive_rate": [0, 0.5, 1], "low": [0, 0.25, 1], "high": [0.125, 0.875, 1]}
    assert found["prevalence"] == {"image": 0.4, "pixel": 0.0625}


def test_many_detectors_have_their_bands_in_panels_of_their_own():
    names = ["memory", "autoencoder", "third", "fourth", "fifth"]
    detector = make_detector("any")
    many = curves.LevelCurves(
        roc=dict.fromkeys(names, detector.roc["image"]),
        pr=dict.fromkeys(names, detector.pr["image"]),
        roc_bands=dict.fromkeys(names, detector.roc_bands["image"]),
        pr_bands=dict.fromkeys(names, detector.pr_bands["image"]),
    )
    assert "FillBetweenPolyCollection" not in curves.draw_curves(many, names=names, prefix="all")
    assert (curves.draw_band_panels(many, names=names, prefix="one") or "").count('id="one-FillBetweenPolyCollection') == 10
    assert curves.draw_band_panels(many, names=names[:2], prefix="one") is None
    assert curves.draw_band_panels(replace(many, roc_bands={}, pr_bands={}), names=names, prefix="one") is None


def test_gallery_shows_reconstruction_map_and_mask_beside_the_true_mask_and_extremes_their_scores(html):
    section = section_of(html, "gallery")
    assert "<h3>Abnormal, highest</h3>" in section
    assert section.count(">reconstruction</figcaption>") == 1
    assert section.count(">map</figcaption>") == section.count(">called</figcaption>") == 2
    true, called = (re.search(rf'src="([^"]+)" alt="{alt}', section) for alt in ("mask of the annotated", "where memory calls"))
    assert (np.array(decode_picture(true[1])) == make_report().gallery[0].mask).all()
    assert (np.array(decode_picture(called[1])) == make_report().gallery[0].called["memory"]).all()
    extremes = section_of(html, "extremes")
    assert "highest scores" in extremes
    assert "3.5 pen</figcaption>" in extremes


def test_twenty_five_detectors_have_styles_of_their_own():
    styles = [figures.style_of(place) for place in range(25)]
    assert len({(colour, str(line)) for colour, line, _ in styles}) == 25
    assert len({(colour, mark) for colour, _, mark in styles}) == 25


def test_the_page_says_what_ranks_the_gallery_how_many_slides_are_left_out_and_how_intervals_were_made(html):
    assert "Intervals are BCa" in html
    assert "are left out" not in html
    plain = [replace(detector, roc_bands={}, pr_bands={}) for detector in make_report().detectors]
    page = render_html(make_report(detectors=plain, gallery_by="memory", slides_left_out=7, interval="percentile"))
    for text in ("ranked by the scores of memory", "7 more slides are left out", "Intervals are percentiles;"):
        assert text in page
    assert "Shaded" not in page


def test_json_keeps_numpy_scalars_as_exact_numbers():
    exact = 1 / 3
    detector = dataclasses.replace(make_detector("memory"), metrics=[MetricRow("image", "AUROC", np.float64(exact), np.float32(0.25), 0.5)])
    row = json.loads(metrics_as_json(make_report(detectors=[detector], gallery=[], slides=[])))["detectors"][0]["metrics"][0]
    assert (row["value"], row["low"]) == (exact, 0.25)


def test_map_colours_are_fixed_clipped_and_clear_where_not_scored():
    values = np.array([[np.nan, 0.0, 1.0], [-5.0, 2.0, 9.0]], np.float32)
    painted = np.array(decode_picture(figures.paint_map(values, colour_range=(0.0, 2.0), fading=False)).convert("RGBA"))
    assert painted[0, 0, 3] == 0
    assert (painted.reshape(-1, 4)[1:, 3] == 255).all()
    assert (painted[0, 1] == painted[1, 0]).all()
    assert (painted[1, 1] == painted[1, 2]).all()
    assert tuple(painted[0, 1, :3]) == (68, 1, 84)  # viridis' ends
    assert tuple(painted[1, 1, :3]) == (253, 231, 37)


def test_alpha_of_a_fading_map_rises_with_the_score():
    ramp = np.linspace(0, 1, 192, dtype=np.float32)[None, :]
    alpha = np.array(decode_picture(figures.paint_map(ramp, colour_range=(0.0, 1.0), fading=True)).convert("RGBA"))[0, :, 3]
    assert alpha.tolist() == list(range(64, 256))


def test_outline_encloses_the_mask_also_at_the_edge():
    mask = np.zeros((6, 8), bool)
    mask[:2, :3] = True
    corners = [tuple(map(float, point.split(","))) for point in re.findall(r"[\d.-]+,[\d.-]+", figures.outline_mask(mask))]
    assert {x for x, _ in corners} <= set(np.arange(0, 3.1, 0.5))
    assert (min(x for x, _ in corners), max(x for x, _ in corners)) == (0, 3)
    assert (min(y for _, y in corners), max(y for _, y in corners)) == (0, 2)
    assert figures.outline_mask(np.zeros((6, 8), bool)) == ""


def test_thinned_curve_keeps_its_corners_and_drops_points_between():
    x = np.concatenate([np.zeros(1000), np.linspace(0, 1, 1000)])
    y = np.concatenate([np.linspace(0, 0.8, 1000), np.linspace(0.8, 1, 1000)])
    thin_x, thin_y = curves.thin_curve((x, y))
    assert list(zip(thin_x, thin_y, strict=True)) == [(0, 0), (0, 0.8), (1, 1)]


@pytest.mark.parametrize("direction", [1, -1])
def test_area_under_stepped_precision_is_average_precision(direction):
    recall, precision = np.array([0.0, 0.25, 0.25, 1.0])[::direction], np.array([1.0, 0.75, 0.5, 0.25])[::direction]
    stepped = curves.step_precision((recall, precision))
    assert np.trapezoid(stepped[1], stepped[0]) == pytest.approx(0.25 * 0.75 + 0.75 * 0.25)


@pytest.mark.parametrize(("width_mm", "bar_mm"), [(4.0, 1.0), (2.03, 0.5), (90.0, 20.0), (0.3, 0.05)])
def test_scale_bar_is_a_round_length_below_a_quarter_of_the_slide(width_mm, bar_mm):
    assert figures.choose_scale_bar(width_mm) == pytest.approx(bar_mm)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mask": np.zeros((3, 3), bool)}, r"slide 'slide-1'.*\(48, 64\).*\(3, 3\)"),
        ({"overview": np.zeros((48, 64, 3), np.float32)}, "uint8 picture"),
        ({"heat": {"memory": np.zeros((48, 64), np.uint8)}}, "float map"),
        ({"overview": np.zeros((10, 900, 3), np.uint8), "mask": None}, "at most 768"),
    ],
)
def test_pictures_that_do_not_fit_are_refused_with_the_slides_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make_report().slides[0], **wrong)


def test_results_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="note"):
        MetricRow("image", "AUROC", 0.5)
    with pytest.raises(ValueError, match="not finite"):
        MetricRow("image", "AUROC", float("nan"), 0.1, 0.2)
    with pytest.raises(ValueError, match="low < high"):
        dataclasses.replace(make_detector("memory"), colour_range=(1.0, 1.0))
    with pytest.raises(ValueError, match="leave failed images out"):
        dataclasses.replace(make_detector("memory"), scores_normal=np.array([np.nan]))
    with pytest.raises(ValueError, match="no detectors of this report"):
        make_report(detectors=[make_detector("memory")])
    with pytest.raises(ValueError, match="different names"):
        make_report(detectors=[make_detector("memory"), make_detector("autoencoder"), make_detector("memory")])


def test_learning_curves_are_shown_of_detectors_that_learn_by_epochs_alone() -> None:
    learner = replace(make_detector("autoencoder"), learning=LearningCurve([1, 2, 3], [0.5, 0.25, 0.125], [0.5, 0.75, 0.625], best_epoch=2))
    page = render_html(make_report(detectors=[make_detector("memory"), learner]))
    section = page[page.index('<section id="learning">') :]
    section = section[: section.index("</section>")]
    assert "autoencoder" in section
    assert "memory" not in section
    assert "Validation AUROC" in section
    assert 'id="learning"' not in render_html(make_report())
