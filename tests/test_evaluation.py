"""Numbers against scikit-learn and hand counts, intervals over groups, undefined over zero, runs that go on."""

import json
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from brainmri import displays, evaluation, pipeline, runs, suite
from brainmri.cli import app
from brainmri.decision import DecisionRule, softmax
from brainmri.errors import DataError, ModelError
from brainmri.imaging import preprocess
from brainmri.inference import Classifier
from brainmri.model import ModelCard
from brainmri.types import CLASS_NAMES, MRISlice


def predictions(n=400, seed=0, skill=2.0, classes=4, groups=None):
    """A table of predictions by a model of some skill."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    logits = rng.normal(0, 1, (n, 4)) + skill * np.eye(4)[y]
    p = softmax(logits)
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(n)], "label": np.array(CLASS_NAMES)[y]})
    table["group"] = [str(i // 4) for i in range(n)] if groups is None else groups
    for i, c in enumerate(CLASS_NAMES):
        table[f"logit_{c}"], table[f"p_{c}"] = logits[:, i].astype("f4"), p[:, i].astype("f4")
    table["predicted"] = np.array(CLASS_NAMES)[p.argmax(axis=1)]
    table["decision"] = np.where(p.max(axis=1) > 0.6, "class", "undecided")
    table["ood_score"] = rng.random(n).astype("f4")
    for level in (90, 95):
        members = p >= 1 - level / 100
        table[f"set_{level}"] = ["|".join(np.array(CLASS_NAMES)[m]) for m in members]
    table["plane"] = np.array(["ax", "co", "sa"])[rng.integers(0, 3, n)]
    table["height"] = table["width"] = 256
    table["mean_grey"] = rng.uniform(30, 120, n).astype("f4")
    return table


class Toy:
    """An engine that answers by the mean grey of the input; counts its calls and can break."""

    name, precision = "toy", "float32"

    def __init__(self):
        self.seen, self.fail_after, self.broken = 0, None, False

    def forward(self, batch):
        if self.fail_after is not None and self.seen + len(batch) > self.fail_after:
            raise KeyboardInterrupt
        self.seen += len(batch)
        level = batch[:, 40:88, 40:88, 0].mean(axis=(1, 2))
        centres = np.array([0.2, 0.4, 0.6, 0.8])
        logits = (-40 * (level[:, None] - centres) ** 2).astype(np.float32)
        if self.broken:
            logits[:] = np.nan
        maps = np.broadcast_to(level[:, None, None, None], (len(batch), 8, 8, 16)).astype(np.float32)
        return logits, maps


@pytest.fixture
def classifier():
    card = ModelCard(id="toy", weights_sha256="0" * 64, class_names=CLASS_NAMES, created="2026-01-01",
                     architecture="toy", preprocessing={})  # fmt: skip
    return Classifier(card, Toy(), DecisionRule(1.0, (0.7, 0.9)))


@pytest.fixture
def folder(tmp_path):
    """120 pictures of discs with a manifest: a train and a test split, groups of two."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :96]
    lines = []
    for i in range(120):
        label = CLASS_NAMES[i % 4]
        inside = 60 + 45 * (i % 4) + rng.normal(0, 8)
        disc = np.hypot(rows - 48, columns - 48) < 40
        ring = np.hypot(rows - 48, columns - 48) > 36
        image = np.where(disc, np.where(ring, 255, inside), 0) + rng.normal(0, 2, disc.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
        lines.append((f"{i}.png", label, "train" if i < 40 else "test", i // 2, "ax" if i % 3 else "co"))
    pd.DataFrame(lines, columns=["path", "label", "split", "group", "plane"]).to_csv(
        tmp_path / "manifest.csv", index=False
    )
    return tmp_path


# --- numbers --------------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_scikit_learn():
    from sklearn import metrics as sk

    table = predictions()
    found = evaluation.measure(table, n_bootstrap=50)
    y, p = table["label"], table[[f"p_{c}" for c in CLASS_NAMES]].to_numpy(float)
    called = np.array(CLASS_NAMES)[p.argmax(axis=1)]
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, called), abs=1e-6)
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, called), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(sk.f1_score(y, called, average="macro"), abs=1e-6)
    np.testing.assert_array_equal(found["confusion_matrix"], sk.confusion_matrix(y, called, labels=CLASS_NAMES))
    p64 = p / p.sum(axis=1, keepdims=True)
    assert found["roc_auc"]["macro"] == pytest.approx(
        sk.roc_auc_score(y, p64, multi_class="ovr", labels=list(CLASS_NAMES)), abs=1e-5
    )
    for i, c in enumerate(CLASS_NAMES):
        assert found["roc_auc"]["per_class"][c] == pytest.approx(sk.roc_auc_score(y == c, p[:, i]), abs=1e-6)
        precision, recall, f1, support = sk.precision_recall_fscore_support(y, called, labels=[c], zero_division=0)
        row = found["per_class"][c]
        assert row["precision"] == pytest.approx(precision[0], abs=1e-6)
        assert row["recall"] == pytest.approx(recall[0], abs=1e-6)
        assert row["f1"] == pytest.approx(f1[0], abs=1e-6)
        assert row["support"] == support[0]
    assert found["calibration"]["log_loss"] == pytest.approx(sk.log_loss(y, p64, labels=list(CLASS_NAMES)), abs=1e-5)
    tumour = y != "notumor"
    assert found["tumour_vs_none"]["roc_auc"] == pytest.approx(sk.roc_auc_score(tumour, 1 - p[:, 2]), abs=1e-6)


def test_weighted_auc_is_that_of_scikit_learn_with_ties():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    positive, score = rng.random(300) < 0.4, rng.integers(0, 12, 300) / 12
    weights = rng.integers(0, 4, (5, 300)).astype(np.float32)
    expected = [roc_auc_score(positive, score, sample_weight=w) for w in weights]
    np.testing.assert_allclose(evaluation.roc_auc(positive, score, weights), expected, atol=1e-9)


def test_ece_counts_equal_mass_bins_by_hand():
    p = np.array([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1]])
    y = np.array([0, 1, 0, 0])
    assert evaluation.expected_calibration_error(y, p, n_bins=2) == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)


def test_a_calibrated_model_has_a_small_ece_and_an_overconfident_one_does_not():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 4))
    p = softmax(logits)
    y = (p.cumsum(axis=1) > rng.random((len(p), 1))).argmax(axis=1)
    assert evaluation.expected_calibration_error(y, p) < 0.015
    assert evaluation.expected_calibration_error(y, softmax(3 * logits)) > 0.1


def test_ece_by_chance_is_what_exactly_right_probabilities_show():
    """Against plain redrawing of the labels; and it falls with the root of the number of images."""
    rng = np.random.default_rng(4)
    p = softmax(rng.normal(size=(600, 4)) * 3)
    drawn = [
        evaluation.expected_calibration_error((rng.random((600, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(0, 3), p)
        for _ in range(400)
    ]
    said = evaluation.ece_by_chance(p)
    assert said["mean"] == pytest.approx(np.mean(drawn), rel=0.05)
    assert said["percentile_95"] == pytest.approx(np.percentile(drawn, 95), rel=0.08)
    assert evaluation.ece_by_chance(np.tile(p, (16, 1)))["mean"] == pytest.approx(said["mean"] / 4, rel=0.1)


def test_operating_curve_goes_from_nothing_to_everything():
    positive = np.array([True, True, False, False, True])
    score = np.array([0.9, 0.8, 0.8, 0.1, 0.3])
    curve = evaluation.operating_curve(positive, score)
    assert curve["sensitivity"] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1], abs=1e-4)
    assert curve["specificity"] == pytest.approx([1, 1, 0.5, 0.5, 0])
    assert curve["threshold"][1:] == pytest.approx([0.9, 0.8, 0.3, 0.1])


def test_a_long_curve_is_thinned_without_moving():
    rng = np.random.default_rng(0)
    positive = rng.random(50_000) < 0.3
    score = rng.normal(positive * 1.5, 1)
    curve = evaluation.operating_curve(positive, score)
    assert len(curve["threshold"]) <= 2 * evaluation.CURVE_POINTS + 2
    x, y = 1 - np.array(curve["specificity"]), np.array(curve["sensitivity"])
    assert np.trapezoid(y, x) == pytest.approx(evaluation.roc_auc(positive, score)[0], abs=2e-3)


def test_one_wrong_image_gives_no_narrower_interval_than_none():
    groups = np.repeat(np.arange(19), 9)
    right = np.ones(len(groups), bool)
    none_wrong = evaluation.GroupBootstrap(groups).mean(right)
    right[4] = False
    one_wrong = evaluation.GroupBootstrap(groups).mean(right)
    assert one_wrong[0] <= none_wrong[0]
    assert one_wrong[1] == 1
    assert evaluation.GroupBootstrap(groups).mean(~right)[1] == pytest.approx(1 - none_wrong[0], abs=1e-5)
    half = np.arange(len(groups)) % 2 == 0
    assert 0.4 < evaluation.GroupBootstrap(groups).mean(half)[0] < evaluation.GroupBootstrap(groups).mean(half)[1] < 0.6


def test_predictive_values_follow_bayes():
    positive, negative = evaluation.predictive_values(0.9, 0.8, 0.1)
    assert positive == pytest.approx(0.09 / (0.09 + 0.18))
    assert negative == pytest.approx(0.72 / (0.72 + 0.01))
    assert evaluation.predictive_values(0.0, 1.0, 0.1)[0] is None


def test_threshold_keeps_the_sensitivity_it_promises():
    rng = np.random.default_rng(0)
    positive = rng.random(500) < 0.7
    score = rng.normal(positive * 3.0, 1)
    threshold = evaluation.choose_threshold(positive, score, 0.97)
    assert (score[positive] >= threshold).mean() >= 0.97
    assert (score[positive] >= threshold + 0.2).mean() < 0.985


# --- intervals ------------------------------------------------------------------------------------------------------


def test_intervals_come_from_groups_not_images():
    """200 copies of each of 10 scans are 10 observations: the interval must not shrink."""
    right = np.repeat(np.arange(10) % 2, 200).astype(float)
    groups = np.repeat(np.arange(10), 200)
    low, high = evaluation.GroupBootstrap(groups).mean(right)
    assert high - low > 0.4
    low, high = evaluation.GroupBootstrap(np.arange(2000)).mean(right)
    assert high - low < 0.06


def test_interval_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        values = (np.random.default_rng(seed).random(120) < 0.8).astype(float)
        low, high = evaluation.GroupBootstrap(np.arange(120), 300, seed).mean(values)
        hits += low <= 0.8 <= high
    assert 175 <= hits <= 199


def test_one_group_has_no_interval_and_says_why():
    found = evaluation.measure(predictions(40, groups=["a"] * 40), n_bootstrap=20)
    assert found["intervals"]["accuracy"] is None
    assert "1 group" in found["undefined"]["intervals"]


def test_a_part_of_few_groups_has_no_interval_and_says_why():
    table = predictions(200)
    few = pd.concat([table[table["label"] != "glioma"], table[table["label"] == "glioma"].head(3)])
    found = evaluation.measure(few, n_bootstrap=50)
    assert found["intervals"]["accuracy"] is not None
    assert found["intervals"]["recall_glioma"] is None
    assert "fewer than 10 groups" in found["undefined"]["interval_recall_glioma"]


# --- bad input ------------------------------------------------------------------------------------------------------


def test_answers_are_what_readers_are_told():
    labels, called = (
        np.array(["glioma", "glioma", "notumor", ""]),
        np.array(["glioma", "glioma", "pituitary", "glioma"]),
    )
    found = evaluation.count_answers(labels, called, np.array(["class", "undecided", "class", "class"]))
    assert found == {"glioma": {"glioma": 1, "undecided": 1}, "notumor": {"pituitary": 1}}


def test_a_share_that_all_groups_agree_on_is_no_point():
    """Clopper and Pearson's bound for ten groups, not for twenty images; what is no share has no bound, so None."""
    bootstrap = evaluation.GroupBootstrap(np.arange(20) // 2, 100)
    assert bootstrap.mean(np.ones(20, bool)) == pytest.approx([0.6915, 1.0], abs=1e-4)
    assert bootstrap.mean(np.zeros(20, bool)) == pytest.approx([0.0, 0.3085], abs=1e-4)
    assert bootstrap.mean(np.ones(20)) == bootstrap.mean(np.ones(20, bool))
    assert bootstrap.mean(np.r_[np.zeros(10), np.ones(10)], np.arange(20) >= 10) is None  # five groups
    assert bootstrap.mean(np.ones(20, int), share=False) is None
    assert bootstrap.mean(np.full(20, 0.5)) is None


def test_a_flawless_model_has_no_interval_that_is_a_point():
    table = predictions(200, skill=60.0)
    found = evaluation.measure(table, n_bootstrap=50)
    assert found["accuracy"] == found["roc_auc"]["macro"] == found["tumour_vs_none"]["roc_auc"] == 1
    spans = {**found["intervals"], **found["tumour_vs_none"]["intervals"]}
    assert all(span is None or span[0] < span[1] for span in spans.values())
    for name in ("accuracy", *(f"{kind}_{c}" for kind in ("precision", "recall") for c in CLASS_NAMES)):
        assert 0.7 < found["intervals"][name][0] < found["intervals"][name][1] == 1
    for name in ("macro_f1", "roc_auc_macro", "tumour_vs_none_roc_auc"):
        assert "every resample gives the same" in found["undefined"][f"interval_{name}"]
    assert found["conformal"]["0.95"]["mean_set_size_interval"] is None
    assert "[1.000, 1.000]" not in evaluation.classification_report(found)


def test_a_class_without_images_is_undefined_not_zero():
    found = evaluation.measure(predictions(classes=3), n_bootstrap=20)
    assert found["per_class"]["pituitary"]["recall"] is None
    assert found["macro_f1"] is None
    assert found["balanced_accuracy"] is None
    assert found["roc_auc"]["macro"] is None
    assert "pituitary" in found["undefined"]["macro_f1"]
    assert found["accuracy"] is not None
    json.dumps(found, allow_nan=False)


def test_precision_needs_images_of_other_classes():
    """With healthy pictures only, whatever is called healthy is right."""
    found = evaluation.measure(predictions().assign(label="notumor"), n_bootstrap=20)
    row = found["per_class"]["notumor"]
    assert 0 < row["recall"] < 1
    assert found["accuracy"] is None  # it would be the recall by another name
    assert row["precision"] is row["f1"] is None
    for name in ("precision_notumor", "f1_notumor"):
        assert found["undefined"][name] == "needs images of other classes"
        assert name not in found["intervals"]
    assert "undefined" in next(
        line for line in evaluation.classification_report(found).splitlines() if line.startswith("notumor")
    )
    two = evaluation.measure(predictions(classes=2), n_bootstrap=20)
    assert two["per_class"]["glioma"]["precision"] is not None


def test_one_image_per_class_is_defined_or_says_why():
    table = predictions(400).groupby("label").head(1).reset_index(drop=True)
    found = evaluation.measure(table.assign(group=table["path"]), n_bootstrap=50)
    assert found["n"] == 4
    assert found["accuracy"] is not None
    assert set(found["intervals"].values()) == {None}
    assert "10 groups" in found["undefined"]["intervals"]
    json.dumps(found, allow_nan=False)
    displays.plot_roc(found)


def test_tumours_of_unknown_type_count_in_binary_figures_only():
    table = predictions()
    table.loc[table["label"] != "notumor", "label"] = "tumour"
    found = evaluation.measure(table, n_bootstrap=20)
    assert found["tumour_vs_none"]["roc_auc"] is not None
    assert found["n_typed"] == (table["label"] == "notumor").sum()
    only = evaluation.measure(table[table["label"] == "tumour"], n_bootstrap=20)
    assert only["accuracy"] is None
    assert "four classes" in only["undefined"]["accuracy"]
    assert only["tumour_vs_none"]["roc_auc"] is None
    assert only["tumour_vs_none"]["tumour_groups_found"] <= only["tumour_vs_none"]["tumour_groups"]
    json.dumps(only, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.iloc[:0], DataError, "nothing to evaluate"),
        (lambda t: t.drop(columns="p_glioma"), DataError, "lack the column p_glioma"),
        (lambda t: t.assign(label="cyst"), DataError, "label 'cyst'"),
        (lambda t: t.assign(p_glioma=np.nan), ModelError, "no probabilities"),
        (lambda t: t.assign(p_glioma=0.0), ModelError, "no probabilities"),
    ],
)
def test_tables_that_mean_nothing_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        evaluation.measure(change(predictions(20)))


# --- comparing ------------------------------------------------------------------------------------------------------


def test_mcnemar_is_the_exact_binomial_test():
    from scipy.stats import binomtest

    first, second = predictions(skill=1.5), predictions(skill=1.5)
    swapped = predictions(seed=3, skill=4.0)
    for c in CLASS_NAMES:  # the second model answers with another model's probabilities where labels agree
        same = (first["label"] == swapped["label"]).to_numpy()
        second.loc[same, f"p_{c}"] = swapped.loc[same, f"p_{c}"]
    found = evaluation.compare(first, second, n_bootstrap=200)
    a, b = found["only_first_right"], found["only_second_right"]
    assert found["mcnemar_p"] == pytest.approx(binomtest(a, a + b).pvalue)
    assert found["difference"] == pytest.approx((b - a) / found["n"], abs=1e-6)
    assert found["interval"][0] <= found["difference"] <= found["interval"][1]
    assert (found["changed"]["first"] != found["changed"]["second"]).all()
    assert not found["undefined"]
    same = evaluation.compare(first, first, n_bootstrap=20)
    assert same["difference"] == 0
    assert same["interval"] is None
    assert "every resample gives the same difference" in same["undefined"]["interval"]
    assert same["mcnemar_p"] == 1.0
    assert same["changed"].empty


def test_a_run_that_holds_an_image_twice_is_not_compared():
    table = predictions(40)
    with pytest.raises(DataError, match="twice"):
        evaluation.compare(table, pd.concat([table, table.head(1)]))


def test_saved_runs_with_other_sets_of_labels_are_compared(classifier, tmp_path):
    table = predictions().assign(split="test", group=[f"g{i // 40}" for i in range(400)])
    three = table[table["label"] != "pituitary"].reset_index(drop=True)
    saved = [
        runs.save_run(tmp_path / str(i), classifier, t, {"name": "x", "split": "test"}).predictions()
        for i, t in enumerate((table, three.iloc[: len(three) // 2]))
    ]
    assert all(str(t["label"].dtype) == "category" for t in saved)
    found = evaluation.compare(*saved, n_bootstrap=20)
    assert found["n"] == len(three) // 2
    assert found["changed"].empty
    wrong = saved[1].assign(label="glioma")
    with pytest.raises(DataError, match="disagree about the label"):
        evaluation.compare(saved[0], wrong)


def test_runs_of_different_data_are_not_compared():
    first = predictions(20)
    with pytest.raises(DataError, match="no image in common"):
        evaluation.compare(first, first.assign(path=[f"x{i}" for i in range(20)]))
    with pytest.raises(DataError, match="disagree about the label"):
        evaluation.compare(first, first.assign(label="glioma"))


def test_trade_off_reads_the_scores():
    frame = evaluation.trade_off(np.linspace(0, 1, 1001), {"photo": np.full(10, 2.0), "ct": np.linspace(0.5, 1.5, 101)})
    at = frame[np.isclose(frame["threshold"], 1.0)].set_index("kind")
    assert at.loc["photo", "rejected"] == 1.0
    assert at.loc["ct", "rejected"] == pytest.approx(50 / 101)
    assert at.loc["ct", "wrongly_rejected"] == pytest.approx(0, abs=1e-9)


def test_trade_off_is_whole():
    """From a threshold that rejects all to one that rejects nothing, beyond the largest score of a brain."""
    rng = np.random.default_rng(0)
    known, strange = rng.gamma(4, 0.1, 746), {"photo": rng.gamma(5, 3, 60), "ct": rng.gamma(5, 0.4, 60)}
    for kind, part in evaluation.trade_off(known, strange).groupby("kind"):
        assert len(part) < 250
        assert part["threshold"].is_monotonic_increasing
        for column in ("wrongly_rejected", "rejected"):
            assert part[column].iloc[0] == 1
            assert part[column].iloc[-1] == 0
            assert (part[column].diff().dropna() <= 0).all()
        assert part["wrongly_rejected"].diff().abs().max() < 0.03
        assert part["rejected"].diff().abs().max() < 0.1
        beyond = part[part["threshold"] > known.max()]
        assert beyond["rejected"].is_monotonic_decreasing
        row = part.iloc[len(part) // 2]
        assert row["rejected"] == pytest.approx((strange[kind] > row["threshold"]).mean())


# --- runs -----------------------------------------------------------------------------------------------------------


def test_evaluate_saves_a_run_that_opens_again(classifier, folder, tmp_path):
    out = tmp_path / "run"
    made = runs.evaluate(classifier, folder / "manifest.csv", folder, "split", "test", out)
    opened = runs.open_run(out)
    assert opened.metrics == json.loads(json.dumps(made.metrics))
    assert opened.metrics["n"] == 80
    assert opened.metrics["n_groups"] == 40
    assert opened.title == f"toy · {folder.name} · test · n = 80"
    assert len(opened.predictions()) == 80
    assert opened.metrics["baseline"]["n_training"] == 40
    assert {r["column"] for r in opened.metrics["subgroups"]} >= {"label", "plane"}
    assert not (out / runs.PARTIAL).exists()
    assert [r.id for r in runs.list_runs(tmp_path)] == ["run"]
    recomputed = evaluation.measure(opened.predictions(), tumour_threshold=None)
    assert recomputed["accuracy"] == made.metrics["accuracy"]


def test_a_run_of_something_else_is_not_lost_to_a_new_one(classifier, folder, tmp_path):
    out = tmp_path / "run"
    (out / "partial volumes").mkdir(parents=True)
    arguments = (folder / "manifest.csv", folder, "split")
    first = runs.evaluate(classifier, *arguments, "test", out)
    with pytest.raises(DataError, match=r"holds a run of toy, .*, split: test; this one is of toy, .*, split: train"):
        runs.evaluate(classifier, *arguments, "train", out)
    assert runs.open_run(out).metrics["created"] == first.metrics["created"]
    runs.evaluate(classifier, *arguments, "test", out)  # measured anew it replaces itself
    assert (out / "partial volumes").is_dir()


def test_a_stopped_evaluation_goes_on_where_it_stopped(classifier, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "CHUNK", 16)
    arguments = (folder / "manifest.csv", folder, "split", "test", tmp_path / "run")
    classifier.engine.fail_after = 40
    with pytest.raises(KeyboardInterrupt):
        runs.evaluate(classifier, *arguments)
    assert classifier.engine.seen == 32
    classifier.engine.fail_after = None
    whole = runs.evaluate(classifier, *arguments)
    assert classifier.engine.seen == 80
    fresh = runs.evaluate(classifier, *arguments[:-1], tmp_path / "fresh")
    pd.testing.assert_frame_equal(whole.predictions(), fresh.predictions())


def test_an_evaluation_stopped_after_predicting_predicts_nothing_again(classifier, folder, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    arguments = (folder / "manifest.csv", folder, "split", "test", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "nearest_neighbour_baseline", stop)
        with pytest.raises(KeyboardInterrupt):
            runs.evaluate(classifier, *arguments)
    assert classifier.engine.seen == 80
    run = runs.evaluate(classifier, *arguments)
    assert classifier.engine.seen == 80
    assert not list(run.directory.glob("partial*"))


def test_a_finished_part_of_the_suite_is_kept(classifier, folder, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "lgg").symlink_to(folder)
    arguments = (tmp_path / "data", tmp_path / "runs")
    (first,) = suite.run_suite(classifier, *arguments, only=["lgg-test"])
    runs.write_metrics(first.directory, first.metrics | {"added": 1})
    (again,) = suite.run_suite(classifier, *arguments, only=["lgg-test"])
    assert classifier.engine.seen == 80
    assert again.metrics["added"] == 1
    hotter = Classifier(classifier.card, classifier.engine, replace(classifier.rule, temperature=2.0))
    (other,) = suite.run_suite(hotter, *arguments, only=["lgg-test"])
    assert classifier.engine.seen == 160
    assert "added" not in other.metrics


def test_the_workflow_refuses_answers_that_are_no_numbers(classifier):
    classifier.engine.broken = True
    pixels = np.full((64, 64), 90, np.uint8)
    with pytest.raises(ModelError, match=r"one\.png: the network's answer is not a number"):
        pipeline.analyse(classifier, [MRISlice(pixels, "one.png", "0" * 64, "PNG")])


def test_chunks_of_other_weights_are_not_taken(classifier, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "CHUNK", 16)
    rows = runs.select_split(runs.read_rows(folder / "manifest.csv", folder, "split"), "test")
    classifier.engine.fail_after = 40
    with pytest.raises(KeyboardInterrupt):
        runs.predict_rows(classifier, rows, tmp_path / "partial")
    other = Classifier(classifier.card.model_copy(update={"weights_sha256": "1" * 64}), Toy(), classifier.rule)
    runs.predict_rows(other, rows, tmp_path / "partial")
    assert other.engine.seen == 80


def test_nan_probabilities_are_an_error_that_names_the_image(classifier, folder, tmp_path):
    classifier.engine.broken = True
    with pytest.raises(ModelError, match=r"40\.png: the network's answer is not a number"):
        runs.evaluate(classifier, folder / "manifest.csv", folder, "split", "test", tmp_path / "run")


def test_damaged_and_missing_runs_are_clear_errors(tmp_path):
    with pytest.raises(DataError, match="no saved evaluation"):
        runs.open_run(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        runs.open_run(tmp_path)
    (tmp_path / "metrics.json").write_text("[]")
    with pytest.raises(DataError, match="not what"):
        runs.open_run(tmp_path)


@pytest.mark.alone
def test_a_hundred_thousand_predictions_open_within_two_seconds(classifier, tmp_path):
    table = predictions(100_000).assign(split="test")
    runs.save_run(tmp_path / "big", classifier, table, {"name": "big", "split": "test"})
    start = time.perf_counter()
    run = runs.open_run(tmp_path / "big")
    assert len(run.predictions()) == 100_000
    assert time.perf_counter() - start < 2


def test_export_writes_csv_and_figures(classifier, folder, tmp_path):
    run = runs.evaluate(classifier, folder / "manifest.csv", folder, "split", "test", tmp_path / "run", baseline=False)
    names = {p.name for p in runs.export(run)}
    assert names >= {"predictions.csv", "confusion_matrix.png", "roc.png", "precision_recall.png", "reliability.png"}
    assert len(pd.read_csv(tmp_path / "run" / "predictions.csv")) == 80


@pytest.fixture
def command(classifier, monkeypatch):
    import brainmri.inference

    monkeypatch.setattr(brainmri.inference, "load_classifier", lambda *_, **__: classifier)
    return lambda *arguments: CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_command_writes_everything_and_prints_the_report(command, folder, tmp_path):
    answer = command("--manifest", folder / "manifest.csv", "--images", folder, "--split", "test", "--output",
                     tmp_path / "out")  # fmt: skip
    assert answer.exit_code == 0, answer.output
    for name in ("metrics.json", "predictions.csv", "confusion_matrix.png", "roc.png"):
        assert (tmp_path / "out" / name).is_file()
    assert "macro F1" in answer.output
    assert "n = 80" in answer.output
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics) >= {"n", "class_names", "accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "per_class",
                            "confusion_matrix"}  # fmt: skip


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: ("--split", "nowhere"), "split 'nowhere' is empty; splits here: test, train"),
        (lambda f: ("--split-column", "nope"), "no column nope"),
        (lambda f: (f / "70.png").unlink() or (), "1 of 80 images are missing"),
        (lambda f: (f / "70.png").write_bytes(b"x") and (), "70.png"),
    ],
)
def test_command_names_what_is_wrong(command, folder, tmp_path, break_it, message):
    answer = command("--manifest", folder / "manifest.csv", "--images", folder, "--output", tmp_path / "o",
                     *break_it(folder))  # fmt: skip
    assert answer.exit_code != 0
    assert message in str(answer.exception) + answer.output


def test_charts_and_plots_draw_the_same_frames(classifier, folder, tmp_path):
    run = runs.evaluate(classifier, folder / "manifest.csv", folder, "split", "test", tmp_path / "run", baseline=False)
    frame = displays.confusion_frame(run.metrics)
    assert frame["n"].sum() == 80
    chart = displays.chart_confusion_matrix(run.metrics).to_dict()
    drawn = next(iter(chart["datasets"].values()))
    assert [row["n"] for row in drawn] == frame["n"].tolist()
    axes = displays.plot_confusion_matrix(run.metrics).axes[0]
    assert [t.get_text().split("\n")[0] for t in axes.texts] == [str(n) for n in frame["n"]]


def test_inputs_are_not_written_to(folder):
    image = np.array(Image.open(folder / "0.png"))
    before = image.copy()
    preprocess(image)
    runs.thumbnail(image)
    np.testing.assert_array_equal(image, before)
