"""Table: the tables of benchmarks, made from the result files and from nothing else.

python -m benchmarks.table            writes them into the READMEs and pages of docs/
python -m benchmarks.table --check    fails where a page is not what the results say
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
NOT_RUN = "Not run yet."
Result = dict[str, Any]


def _time(seconds: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _cost(result: Result, side: str) -> str:
    value = result[side]
    if result["kind"] == "memory":
        return f"{value:,.0f} MiB"
    if result["kind"] == "cpu":
        return f"{value:.2f} s CPU"
    if result["unit"] in ("view", "image", "sample", "query"):
        plural = "queries" if result["unit"] == "query" else f"{result['unit']}s"
        return f"{1 / value:,.0f} {plural}/s"
    return _time(value)


def _speed_line(result: Result) -> str:
    start = [result["work"], result["against"]]
    overhead = result["kind"] in ("overhead", "cpu")
    targets = ["-", "-"]
    if result["at_least"] is not None:
        sign = "≤ " if overhead else "≥ "
        targets = [f"{sign}{result['at_least']:g}x", f"{result['aim']:g}x"]
    if "not_run" in result:
        return _line([*start, "-", "-", f"not run: {result['not_run']}", *targets, "-"])
    ratio, bound = result["ratio"], result["bound"]
    side = "≤" if overhead else "≥"
    cells = [f"**{ratio:.3g}x** ({side} {bound:.3g})", *targets, str(result["rounds"])]
    return _line([*start, _cost(result, "ours"), _cost(result, "theirs"), *cells])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(titles: list[str]) -> list[str]:
    return [_line(titles), f"|{'---|' * len(titles)}"]


def speed_table(results: dict[str, Result]) -> str:
    """Ratios of all rows, then where and when they were measured."""
    if not results:
        return NOT_RUN
    titles = ["work", "against", "sslzoo", "theirs", "ratio (95 % bound)", "target", "aim"]
    lines = _head([*titles, "rounds"]) + [_speed_line(result) for result in results.values()]
    notes = {_where(result) for result in results.values() if "ratio" in result}
    return "\n".join([*lines, "", *(f"- {note}" for note in sorted(notes))]).rstrip()


def _where(result: Result) -> str:
    ours, theirs = result["versions"], result["peer_versions"]
    peers = [f"{name} {theirs[name]}" for name in ("lightly", "kornia") if name in theirs]
    against = f" against {', '.join(peers)}" if peers else ""
    return f"commit {result['commit'][:12]}, {_place(result)}, torch {ours['torch']}{against}"


def steps_table(results: Result | None) -> str:
    """Shares of a step's time, and the bounds of its arithmetic."""
    if results is None:
        return NOT_RUN
    nets = {name: row for name, row in results.items() if name != "versions"}
    kinds = list(dict.fromkeys(kind for row in nets.values() for kind in row["shares"]))
    titles = ["net", "samples/s", "step", "memory returned", "page faults", "arithmetic"]
    lines = _head([*titles, "convolutions alone", *kinds])
    for name, row in nets.items():
        shares = [f"{100 * row['shares'].get(kind, 0):.0f} %" for kind in kinds]
        returned = row["memory_returned"]
        times = [row["step_seconds"], returned["step_seconds"]]
        times += [row["product_bound_seconds"], row["convolutions_alone_seconds"]]
        step, before, *bounds = (f"{1e3 * x:,.0f} ms" for x in times)
        faults = f"{row['page_faults']:,.0f}, were {returned['page_faults']:,.0f}"
        rate = f"{row['samples_per_second']:.0f}"
        lines.append(_line([name.replace("_", " "), rate, step, before, faults, *bounds, *shares]))
    notes = {
        f"- a matrix product reaches {row['product_gflops']:.0f} GFLOPS on {row['threads']} "
        f"threads; {_place(row)}, commit {row['commit'][:12]}"
        for row in nets.values()
    }
    return "\n".join([*lines, "", *sorted(notes)])


def quality_table(results: list[Result]) -> str:
    """The accuracies of the trained encoders beside their floors."""
    if not results:
        return NOT_RUN
    titles = ["run", "data", "epochs", "minutes", "CPU minutes", "peak memory", "kNN"]
    titles += ["kNN of the fp16 file", "linear probe of it"]
    floors = ["untrained net", "pixels", "normalized pixels"]
    lines = _head([*titles, *floors, "seeds", "config", "commit"])
    for result in results:
        scores = [
            f"**{result['knn_top1']:.4f}**",
            f"{result['knn_top1_float16']:.4f}",
            f"{result['linear_top1']:.4f}" if "linear_top1" in result else "-",
            f"{result['untrained_knn_top1']:.4f}",
            f"{result['raw_pixels_knn_top1']:.4f}",
            f"{result['normalized_pixels_knn_top1']:.4f}",
        ]
        cost = [*_minutes(result), f"{result['peak_memory_mb']:,.0f} MiB"]
        recipe = " ".join(f"`{text}`" for text in (result["config"], *changes(result)))
        about = [", ".join(map(str, result["seeds"])), recipe]
        about.append(result["commit"][:12] + ("-dirty" if "dirty" in result["commit"] else ""))
        lines.append(
            _line([result["name"], result["data"], epochs(result), *cost, *scores, *about])
        )
    protocols = sorted({result["protocol"] for result in results})
    places = sorted({_place(result) for result in results})
    return "\n".join([*lines, "", *(f"- {note}" for note in [*protocols, *places])])


def changes(result: Result) -> list[str]:
    """Arguments by which a run differs from its recipe, besides length, precision and seed."""
    others = ("--trainer.", "--ckpt_path", "--seed_everything")
    return [text for text in result.get("extra", ()) if not text.startswith(others)]


def epochs(result: Result) -> str:
    """The epochs of a run, a fraction where it had a part of the batches."""
    limit = "--trainer.limit_train_batches="
    given = [text for text in result.get("extra", ()) if text.startswith(limit)]
    part = [float(text.removeprefix(limit)) for text in given]
    return f"{result['epochs'] * (part or [1.0])[-1]:g}"


def _place(result: Result) -> str:
    widest = f" ({result['widest']})" if result.get("widest") else ""
    where = f"{result['cpu']}{widest}, {result['cores']} cores"
    return f"{result['gpu']}, CUDA {result['cuda']}, {where}" if "gpu" in result else where


def _minutes(result: Result) -> list[str]:
    """Of the clock, and of all cores together; the first runs did not record these."""
    cpu = result.get("cpu_minutes")
    clock = f"{result['minutes']:.1f}" + (" (GPU)" if "gpu" in result else "")
    return [clock, "-" if cpu is None else f"{cpu:.1f}"]


def short_quality_table(results: list[Result]) -> str:
    """What the front page shows of it."""
    if not results:
        return NOT_RUN
    titles = ["recipe", "epochs", "kNN top-1 (k 20, T 0.07)", "untrained net"]
    lines = _head([*titles, "pixels", "normalized pixels", "minutes", "CPU minutes"])
    floors = ("untrained_knn_top1", "raw_pixels_knn_top1", "normalized_pixels_knn_top1")
    for r in (result for result in results if result["seeds"] == [0]):  # one row per recipe
        scores = [r["knn_top1"], *(r[floor] for floor in floors)]
        cells = [f"{value:.3f}" for value in scores]
        lines.append(_line([f"`{r['config']}`", epochs(r), *cells, *_minutes(r)]))
    return "\n".join(lines)


def studies_table(results: list[Result]) -> str:
    """Short runs that say why a figure is what it is."""
    if not results:
        return NOT_RUN
    titles = ["study", "config", "changes", "epochs", "CPU minutes", "kNN", "untrained net"]
    lines = _head([*titles, "commit"])
    for r in results:
        about = [f"`{r['config']}`", ", ".join(f"`{text}`" for text in changes(r)) or "-"]
        cost = [str(r["epochs"]), f"{r['cpu_minutes']:.1f}"]
        scores = [f"**{r['knn_top1']:.4f}**", f"{r['untrained_knn_top1']:.4f}"]
        lines.append(_line([r["name"], *about, *cost, *scores, r["commit"][:12]]))
    return "\n".join(lines)


def semi_supervised_table(results: dict[str, Result]) -> str:
    """Accuracies with few labels, by where training starts."""
    if not results:
        return NOT_RUN
    lines = _head(["labels, start", "top-1", "epochs", "CPU minutes", "seeds", "config", "commit"])
    for name, result in results.items():
        about = [str(result["epochs"]), f"{result['cpu_minutes']:.1f}"]
        about += [", ".join(map(str, result["seeds"])), f"`{result['config']}`"]
        lines.append(_line([name, f"**{result['top1']:.4f}**", *about, result["commit"][:12]]))
    places = sorted({_place(result) for result in results.values()})
    return "\n".join([*lines, "", *(f"- {place}" for place in places)])


def masked_table(results: dict[str, Result]) -> str:
    """MAE's features by a linear probe, its weights by fine-tuning, each beside its floor."""
    if not results:
        return NOT_RUN
    lines = _head(["measured", "pre-trained", "untrained", "pixels", "fine-tuning"])
    probe = results.get("linear probe")
    if probe is not None:
        by = probe["accuracy"]
        for pool, value in by["trained"].items():
            floors = [f"{by['untrained'][pool]:.4f}", f"{by['pixels']['pixels']:.4f}", "-"]
            lines.append(_line([f"linear probe, {pool}", f"**{value:.4f}**", *floors]))
    if {"fine-tuned", "from scratch"} <= results.keys():
        ours, floor = results["fine-tuned"], results["from scratch"]
        cells = [f"**{ours['top1']:.4f}**", f"{floor['top1']:.4f}", "-"]
        cost = f"{ours['epochs']} epochs, {ours['cpu_minutes']:.1f} CPU minutes"
        lines.append(_line([f"fine-tuned, {100 * ours['labels']:g} % of labels", *cells, cost]))
    notes = {f"commit {r['commit'][:12]}, {_place(r)}" for r in results.values()}
    return "\n".join([*lines, "", *(f"- {note}" for note in sorted(notes))])


def audio_table(result: Result | None) -> str:
    """Accuracies of the probes of CPC on spoken digits, beside their floors."""
    if result is None:
        return NOT_RUN
    titles = ["features", "digit, linear", "digit, hidden layer", "speaker, linear"]
    lines = _head([*titles, "speaker, hidden layer"])
    names = {
        "trained": "trained encoder",
        "untrained": "untrained encoder",
        "log_mel_mean": "log-mel, mean over time",
        "log_mel_mean_and_deviation": "log-mel, mean and deviation",
    }
    for row, title in names.items():
        scores = result["accuracy"][row]
        cells = [f"{scores[t][p]:.3f}" for t in ("digit", "speaker") for p in ("linear", "hidden")]
        lines.append(_line([title, *cells]))
    loader = result["loader_windows_per_cpu_second"]
    asked = result["training_windows_per_cpu_second"]
    about = (
        f"- `{result['config']}`, {result['epochs']} epochs, {result['minutes']:.1f} minutes "
        f"({result['cpu_minutes']:.1f} of CPU), commit {result['commit'][:12]}, {result['cpu']}, "
        f"{result['cores']} cores; {result['train']} recordings, {result['test']} to test"
    )
    rate = (
        f"- the loader gives {loader:,.0f} windows a second of CPU time, training takes "
        f"{asked:,.0f}: {100 * asked / loader:.1f} % of a step is loading"
    )
    return "\n".join([*lines, "", about, rate])


SPEECH = {
    "cpc": "CPC",
    "wav2vec2": "wav2vec 2.0",
    "hubert": "HuBERT",
    "data2vec": "data2vec",
    "byol_a": "BYOL-A",
}


def speech_table(result: Result | None) -> str:
    """Digits of unseen speakers, and speakers, of speech methods trained for equal time."""
    if result is None:
        return NOT_RUN
    columns = [(task, part) for task in ("digit", "speaker") for part in ("last", "layers")]
    titles = ["digits, last layer", "digits, all layers", "speakers, last layer"]
    lines = _head(["features", *titles, "speakers, all layers", "steps", "seeds"])
    runs: dict[tuple[str, float], list[Result]] = {}
    for name, row in result["rows"].items():
        runs.setdefault((name.split()[0], row.get("minutes", 0.0)), []).append(row)
    for mean in ("mean", "mean_and_deviation"):
        for row in runs.get(("log_mel", 0.0), []):
            cells = [f"{100 * row[mean][task]:.1f}" for task in ("digit", "speaker")]
            title = f"log-mel, {mean.replace('_', ' ')} over time"
            lines.append(_line([title, cells[0], "-", cells[1], "-", "-", "-"]))

    def line(title: str, state: str, rows: list[Result]) -> str:
        cells = []
        for task, part in columns:
            values = [100 * row[state][part][task] for row in rows if part in row[state]]
            spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{spread}" if values else "-")
        steps = f"{statistics.fmean(row['steps'] for row in rows):,.0f}"
        return _line([title, *cells, steps if state == "trained" else "-", str(len(rows))])

    trained = []
    for name, title in SPEECH.items():
        own = {minutes: rows for (of, minutes), rows in sorted(runs.items()) if of == name}
        if own:
            most = max(own.values(), key=len)
            lines.append(line(f"{title}, untrained", "untrained", most))
        for minutes, rows in own.items():
            lines.append(line(f"{title}, {minutes:g} min", "trained", rows))
            trained += rows
    places = sorted({f"{_place(row)}, commit {row['commit'][:12]}" for row in trained})
    note = (
        "- top-1 in percent, the mean (lowest to highest) of the seeds; minutes are CPU minutes of "
        f"training a run, one thread; {'; '.join(places)}"
    )
    return "\n".join([*lines, "", note])


def agent_table(results: dict[str, Any] | None) -> str:
    """Mean return of the whole training and of its last tenth, with the deviation over seeds."""
    if results is None:
        return NOT_RUN
    lines = [
        _line(["environment", "frames", "agent", "mean return", "of the last tenth", "CPU, min"]),
        "|---" * 6 + "|",
    ]
    for name, about in results.items():
        for arm, title in (("a2c", "A2C"), ("a2c_cpc", "A2C with CPC")):
            seeds = about[arm]["returns"]
            parts = [[statistics.fmean(s) for s in seeds], [s[-1] for s in seeds]]
            scores = [f"{statistics.fmean(p):.0f} +- {statistics.stdev(p):.0f}" for p in parts]
            minutes = f"{about[arm]['cpu_minutes']:.1f}"
            lines.append(_line([name, f"{about['frames']:,}", title, *scores, minutes]))
    about = next(iter(results.values()))
    place = f"{about['cpu']}, {about['cores']} cores, commit {about['commit'][:12]}"
    return "\n".join([*lines, "", f"- {len(about['seeds'])} seeds; {place}"])


def trajectories_table(result: Result | None) -> str:
    """Accuracies of the probe for a constant of the physics."""
    if result is None:
        return NOT_RUN
    lines = _head(["features", f"gravity, linear probe ({result['data']})"])
    names = {
        "trained": "trained encoder",
        "untrained": "untrained encoder",
        "raw": "raw observations, mean and deviation",
    }
    return "\n".join(
        [*lines, *(_line([names[row], f"{result['accuracy'][row]:.3f}"]) for row in names)]
    )


def series_table(results: dict[str, Result]) -> str:
    """Accuracies of the probe for the classes of time series: mean and deviation over the seeds."""
    if not results:
        return NOT_RUN
    names = {
        "trained": "trained",
        "untrained": "untrained",
        "statistics": "raw, mean and deviation",
        "values": "raw values",
    }
    head = ["series", "training, test", *names.values(), "CPU minutes, all seeds", "seeds"]
    lines = _head([*head, "config", "commit"])
    for name, result in results.items():
        cells = []
        for row in names:
            given = result["accuracy"][row]
            spread = f" ± {statistics.stdev(given):.3f}" if len(set(given)) > 1 else ""
            cells.append(f"{statistics.mean(given):.3f}{spread}")
        sizes = f"{result['series']['train']}, {result['series']['val']}"
        about = [f"{result['cpu_minutes']:.1f}", ", ".join(map(str, result["seeds"]))]
        about += [f"`{result['config']}`", result["commit"][:12]]
        lines.append(_line([name, sizes, *cells, *about]))
    places = sorted({_place(result) for result in results.values()})
    return "\n".join([*lines, "", *(f"- {place}" for place in places)])


def bible_table(result: Result | None) -> str:
    """Books told from verses and Spearman on STS-B, of CPC on the Bible and of other encoders."""
    if result is None:
        return NOT_RUN
    names = {
        "trained": "CPC, trained",
        "untrained": "CPC, untrained",
        "trained_tokens": "mean of its tokens",
        "words": "bag of words",
    }
    rows = {title: result["scores"][row] for row, title in names.items()}
    rows |= {f"`{name}` of the zoo": scores for name, scores in result["zoo"].items()}
    lines = _head(["encoder", "book, linear", "STS-B, dev / test"])
    for title, scores in rows.items():
        pairs = " / ".join(f"{scores[f'spearman_{part}']:.3f}" for part in ("dev", "test"))
        lines.append(_line([title, f"{scores['linear']:.3f}", pairs]))
    counts = result["lines"]
    about = (
        f"- {counts['text']:,} verses, {result['epochs']} epochs of `{result['config']}`, "
        f"{result['cpu_minutes']:.1f} minutes of CPU, commit {result['commit'][:12]}, "
        f"{_place(result)}; the probe is fitted to {counts['book_train']:,} verses of "
        f"{counts['books']} books and scored on {counts['book_test']:,}"
    )
    return "\n".join([*lines, "", about])


def views_table(result: Result | None) -> str:
    """Segmentation from L with more and more further views: mean and range over seeds."""
    if result is None:
        return NOT_RUN
    titles = ["training", "linear mIoU", "linear pixel accuracy", "kNN mIoU"]
    lines = _head([*titles, "kNN pixel accuracy", "seeds", "CPU s"])
    for row, seeds in result["rows"].items():
        cells = []
        for probe, score in itertools.product(("linear", "knn"), ("miou", "accuracy")):
            values = [seed[probe][score] for seed in seeds.values() if probe in seed]
            mean = statistics.fmean(values) if values else 0.0
            spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
            cells.append(f"{mean:.1f}{spread}" if values else "-")
        seconds = statistics.fmean(seed["cpu_seconds"] for seed in seeds.values())
        lines.append(_line([row, *cells, str(len(seeds)), f"{seconds:.0f}"]))
    about = result["about"]
    total = sum(seed["cpu_seconds"] for seeds in result["rows"].values() for seed in seeds.values())
    note = (
        f"- `{about['config']}`, {about['scenes']['train']:,} scenes, {about['scenes']['val']} "
        f"held out; in percent, the mean over seeds (lowest to highest); training took "
        f"{total / 60:.1f} minutes of one core in all, {_place(about)}, commit "
        f"{about['commit'][:12]}"
    )
    return "\n".join([*lines, "", note])


def dense_table(result: Result | None) -> str:
    """Segmentation by frozen patch tokens, before and after training."""
    if result is None:
        return NOT_RUN
    titles = ["method", "linear mIoU", "untrained", "patch kNN mIoU", "untrained"]
    lines = _head([*titles, "training, CPU minutes"])
    for row, found in result["rows"].items():
        trained = found.get("trained", found.get(row, {}))
        cells = []
        for score in ("linear_miou", "knn_miou_k30_t0.02"):
            for part in (trained, found.get("untrained")):
                cells.append("-" if part is None else f"{100 * part[score]:.1f}")
        minutes = found.get("cpu_minutes")
        lines.append(_line([row, *cells, "-" if minutes is None else f"{minutes:.1f}"]))
    note = (
        f"- {result['data']}, {len(result['classes'])} classes, in percent; {result['net']}; "
        f"{result['epochs']} epochs of pre-training, one seed; {result['processor']}"
    )
    return "\n".join([*lines, "", note])


def pairs_table(result: Result | None) -> str:
    """Retrieval and zero-shot classification of CLIP and SigLIP: mean and range over seeds."""
    if result is None:
        return NOT_RUN
    titles = ["method", "image to text R@1", "R@5", "text to image R@1", "R@5"]
    lines = _head([*titles, "R@1 among new pairs", "floor, zero-shot", "of new pairs"])
    scores = ["all_image_to_text_r1", "all_image_to_text_r5", "all_text_to_image_r1"]
    scores += ["all_text_to_image_r5", "new_image_to_text_r1", "all_zero_shot", "new_zero_shot"]
    names = list(dict.fromkeys(row.split(" seed ")[0] for row in result["rows"]))
    for name, state in itertools.product(names, ("untrained", "trained")):
        seeds = [v[state] for row, v in result["rows"].items() if row.startswith(f"{name} seed")]
        cells = []
        for score in scores:
            values = [100 * seed[score] for seed in seeds]
            spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{spread}")
        lines.append(_line([f"{name}, {state}", *cells]))
    minutes = statistics.fmean(row["cpu_minutes"] for row in result["rows"].values())
    note = (
        f"- {result['rooms']['train']:,} rooms, {result['rooms']['val']} held out, of which "
        f"{result['new_rooms']} of new pairs; {result['epochs']} epochs, seeds "
        f"{', '.join(map(str, result['seeds']))}, {minutes:.1f} CPU minutes a run; in percent, the "
        f"mean (lowest to highest); {_place(result)}, commit {result['commit'][:12]}"
    )
    return "\n".join([*lines, "", note])


def pairs_memory_table(result: Result | None) -> str:
    """Memory and time of forward and backward of CLIP's and SigLIP's losses."""
    if result is None:
        return NOT_RUN
    lines = _head(["loss", "form", "pairs", "memory", "seconds"])
    for row, found in result["rows"].items():
        name, form, count = row.split()
        form = "sslzoo" if form == "sslzoo" else "open_clip's, all logits at once"
        memory, seconds = f"{found['mib']:,.0f} MiB", f"{found['seconds']:.1f}"
        lines.append(_line([name, form, f"{int(count):,}", memory, seconds]))
    note = (
        f"- embeddings of width {result['width']}, float32, one process; the rise of the peak "
        f"resident memory over what the embeddings take, two threads, once each; "
        f"{_place(result)}, commit {result['commit'][:12]}"
    )
    return "\n".join([*lines, "", note])


def text_table(results: dict[str, Result]) -> str:
    """Spearman of trained sentence encoders, their baselines, and what bounds their training."""
    if not results:
        return NOT_RUN
    columns = ("spearman_dev", "spearman_test")
    titles = {
        "trained": "trained",
        "untrained": "untrained",
        "trained_tokens": "its tokens' mean",
        "untrained_tokens": "untrained tokens' mean",
        "words": "bag of words",
    }
    speeds = [f"{part}_per_cpu_second" for part in ("read", "views", "trained")]
    head = [
        "run",
        "epochs",
        "minutes",
        "CPU minutes",
        *(f"{t}, dev / test" for t in titles.values()),
    ]
    lines = _head(
        [*head, "sentences per CPU second: read, views, trained", "seeds", "config", "commit"]
    )
    for name, result in results.items():
        scores = [
            " / ".join(f"{result['scores'][row][column]:.3f}" for column in columns)
            for row in titles
        ]
        scores[0] = f"**{scores[0]}**"
        cost = [str(result["epochs"]), *_minutes(result)]
        about = [", ".join(f"{result[speed]:,.0f}" for speed in speeds)]
        about += [", ".join(map(str, result["seeds"])), f"`{result['config']}`"]
        lines.append(_line([name, *cost, *scores, *about, result["commit"][:12]]))
    places = sorted({_place(result) for result in results.values()})
    return "\n".join([*lines, "", *(f"- {place}" for place in places)])


# Metrics of the runs that go on from given weights, and their titles.
CONTINUE_TEXT = {
    "neighbor_at_1": "neighboring verse is nearest",
    "neighbor_at_10": "is among the 10 nearest",
    "spearman_dev": "STS-B dev, Spearman",
    "spearman_test": "test",
}
CONTINUE_IMAGES = {
    "knn_top1_k20_t0.07": "kNN (k 20, T 0.07)",
    "effective_rank": "effective rank",
}


def continue_table(result: Result | None, titles: dict[str, str]) -> str:
    """Row 0, and means over seeds of the runs that went on from it, with their changes."""
    if not result:
        return NOT_RUN
    grouped: dict[str, list[Result]] = {}
    for key, run in result["runs"].items():
        grouped.setdefault(key.rpartition(" ")[0], []).append(run)
    start = result.get("row0") or next(iter(result["runs"].values()))["start"]
    lines = _head(["run", *titles.values(), "steps", "seeds", "CPU minutes per run", "config"])
    lines.append(_line(["start weights (row 0)", *(_plain(start[m]) for m in titles), *"----"]))
    if "words" in result:
        words = [_plain(result["words"][m]) if m in result["words"] else "-" for m in titles]
        lines.append(_line(["bag of words", *words, *"----"]))
    for name, runs in grouped.items():
        cells = []
        for metric in titles:
            mean = statistics.mean(run["last"][metric] for run in runs)
            change = mean - start[metric]
            cells.append(f"{_plain(mean)} ({'+' if change > 0 else ''}{_plain(change)})")
        cost = f"{statistics.mean(run['cpu_minutes'] for run in runs):.1f}"
        about = [str(runs[0]["steps"]), str(len(runs)), cost, f"`{runs[0]['config']}`"]
        lines.append(_line([name, *cells, *about]))
    return "\n".join([*lines, "", f"- {result['start']}; {result['data']}", f"- {_place(result)}"])


def _plain(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.3f}"  # an effective rank, a fraction


def labels_note(result: Result | None) -> str:
    """What the same sentence encoder learns where it is told the scores of the training pairs."""
    if result is None:
        return NOT_RUN
    dev, test = (result["scores"][f"spearman_{name}"] for name in ("dev", "test"))
    return (
        "- told the scores of the training pairs (`python -m benchmarks.text_with_labels`), the "
        f"net of `{result['config']}` reaches **{dev:.3f} / {test:.3f}** from the same weights "
        f"(epoch {result['best_epoch']} of {result['epochs']}, the best on dev), "
        f"{result['cpu_minutes']:.1f} minutes of CPU, commit {result['commit'][:12]}"
    )


def quickstart_table(result: Result | None) -> str:
    """The table that the quickstart prints at its end, over three seeds."""
    if result is None:
        return NOT_RUN
    seconds = statistics.mean(result["seconds"])
    setting = f"kNN (k {result['k']}, T {result['temperature']:g})"
    few = f"linear probe, {result['labels_per_class']} labels per class"
    changed = result["changed"]
    lines = _head(
        [f"5,000 digits, {seconds:.0f} s", setting, few, f"{changed}: kNN", f"{changed}: linear"]
    )
    titles = {
        "trained": "**trained encoder**",
        "untrained": "untrained encoder",
        "raw": "raw pixels",
    }
    for row, title in titles.items():
        scores = result["scores"][row]
        names = ("knn", "linear", "changed_knn", "changed_linear")
        means = [f"{statistics.mean(scores[name]):.3f}" for name in names]
        lines.append(_line([title, *means]))
    about = f"(means of {len(result['seeds'])} seeds; {result['cpu']}, {result['cores']} cores)"
    return "\n".join([*lines, "", about])


EQUAL_SIDES = {
    "ours": "sslzoo",
    "lightly": "lightly",
    "lightly-recipe": "lightly, the recipe's loss",
}


def equal_time_table(result: Result | None) -> str:
    """KNN, linear probe and epochs after equal times: mean and range over seeds."""
    if not result:
        return NOT_RUN
    return "\n\n".join(_equal_times(setting, rows) for setting, rows in result.items())


def _equal_times(setting: str, rows: Result) -> str:
    sides = [side for side in EQUAL_SIDES if any(side in by for by in rows.values())]
    columns = {"knn_top1": "kNN", "linear_top1": "linear", "epochs": "epochs"}
    pairs = list(itertools.product(columns, sides))
    lines = _head(["method", *(f"{columns[c]}, {EQUAL_SIDES[side]}" for c, side in pairs), "seeds"])
    notes, runs = (
        [],
        [run for by in rows.values() for seeds in by.values() for run in seeds.values()],
    )
    for method, by in rows.items():
        digits = {"knn_top1": 3, "linear_top1": 3, "epochs": 1}
        cells = [_mean([run[c] for run in by.get(s, {}).values()], digits[c]) for c, s in pairs]
        numbers = sorted({seed for seeds in by.values() for seed in seeds}, key=int)
        lines.append(_line([method, *cells, ", ".join(numbers)]))
        for side, seeds in by.items():
            times = [run["minutes_to_goal"] for run in seeds.values() if "minutes_to_goal" in run]
            reached = [time for time in times if time is not None]
            if times:
                took = _mean(reached, 1) + " minutes" if reached else "not reached"
                part = f" in {len(reached)} of {len(times)} runs" if reached else ""
                goal = f"time to kNN {runs[0]['goal']:.2f}"
                notes.append(f"- {method}, {EQUAL_SIDES[side]}: {goal}: {took}{part}")
    peers = {run["versions"].get("lightly") for run in runs} - {None}
    against = f" against lightly {', '.join(sorted(peers))}" if peers else ""
    about = f"- {setting}{against}; "
    notes += sorted({f"{about}{_place(run)}, commit {run['commit'][:12]}" for run in runs})
    return "\n".join([*lines, "", *notes])


def equal_time_summary(result: Result | None) -> str:
    """Means over seeds after the setting that most methods have, the better side in bold."""
    if not result:
        return NOT_RUN
    setting, rows = max(result.items(), key=lambda item: len(item[1]))
    pairs = list(itertools.product(("kNN", "linear probe"), ("sslzoo", "lightly")))
    lines = _head([setting, *(", ".join(pair) for pair in pairs), "seeds of each"])
    for method, by in rows.items():
        if not {"ours", "lightly"} <= by.keys():
            continue
        sides = [list(by[side].values()) for side in ("ours", "lightly")]
        cells = []
        for column in ("knn_top1", "linear_top1"):
            means = [round(statistics.fmean(run[column] for run in runs), 3) for runs in sides]
            best = max(means) if means[0] != means[1] else None
            cells += [f"**{mean:.3f}**" if mean == best else f"{mean:.3f}" for mean in means]
        lines.append(_line([method, *cells, str(min(map(len, sides)))]))
    return "\n".join(lines)


def equal_steps_table(result: Result | None) -> str:
    """SimCLR's small recipe with changes, after as many steps."""
    if not result:
        return NOT_RUN
    lines = _head(["changes", "kNN", "linear", "loss", "seeds"])
    runs = [run for seeds in result.values() for run in seeds.values()]
    for changes, seeds in result.items():
        columns = ("knn_top1", "linear_top1", "loss")
        cells = [_mean([run[c] for run in seeds.values()], 3) for c in columns]
        lines.append(_line([changes.replace("+", ", "), *cells, ", ".join(sorted(seeds, key=int))]))
    steps = sorted({run["steps"] for run in runs})
    notes = sorted({f"- {_place(run)}, commit {run['commit'][:12]}" for run in runs})
    return "\n".join([*lines, "", f"- {', '.join(map(str, steps))} steps, one thread", *notes])


def _mean(values: list[float], digits: int) -> str:
    """With the range where it has one."""
    if not values:
        return "-"
    texts = [f"{value:.{digits}f}" for value in (min(values), max(values))]
    spread = f" ({' to '.join(texts)})" if texts[0] != texts[1] else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def streams_table(result: Result | None) -> str:
    """Shards beside the folder loader, each with N and 10 N images."""
    if result is None or "rows" not in result:
        return NOT_RUN
    sizes = list(next(iter(result["rows"].values())))
    kinds = {"start_up": "start-up", "resume": "resume"}
    quiet = not result["beside"]  # seconds of the clock say little beside other work
    titles = ["format", "images per CPU second", *(["images/s"] if quiet else [])]
    titles += [f"memory (MB), {int(size):,} images" for size in sizes]
    unit = "CPU s / s" if quiet else "CPU s"
    titles += [f"{kind} ({unit}), {int(n):,} images" for kind in kinds.values() for n in sizes]
    lines = _head(titles)
    for name, cases in result["rows"].items():
        largest = cases[sizes[-1]]
        cells = [f"{1 / largest['image_cpu_s']:.0f}"]
        cells += [f"{1 / largest['image_s']:.0f}"] if quiet else []
        cells += [f"{cases[size]['peak_mb']:.0f}" for size in sizes]
        for kind in kinds:
            for size in sizes:
                cpu, wall = cases[size][f"{kind}_cpu_s"], cases[size][f"{kind}_s"]
                cells.append(f"{cpu:.2f}" + (f" / {wall:.2f}" if quiet else ""))
        lines.append(_line([name, *cells]))
    return "\n".join([*lines, "", f"- {_streams_place(result)}"])


def knn_memory_note(result: Result | None) -> str:
    """What exact kNN on the features of a large set takes."""
    if result is None or "knn" not in result:
        return NOT_RUN
    knn = result["knn"]
    return (
        f"{knn['rows']:,} random features of 768 numbers take {knn['features_mb']:,} MB in "
        f"float16; the exact search for {knn['queries']} queries took "
        f"{knn['beyond_features_mb']:,} MB beyond them at its peak, and {knn['cpu_seconds']:.0f} s "
        f"of one core ({_streams_place(knn)})."
    )


def _streams_place(result: Result) -> str:
    beside = f", beside {result['beside']}" if result["beside"] else ""
    return f"{result['cpu']}, one thread{beside}; commit {result['commit'][:12]}"


def render(readme: str, results: Path) -> str:
    """A README's text with the tables that it has markers for, as the results say.

    Raises:
        ValueError: the README has no marker, or half of a pair.
    """

    def read(name: str) -> Any:
        path = results / name
        return json.loads(path.read_text()) if path.exists() else None

    quality, studies = (
        [json.loads(path.read_text()) for path in sorted((results / name).glob("*.json"))]
        for name in ("quality", "studies")
    )
    tables = {
        "speed": speed_table(read("speed.json") or {}),
        "speed-avx2": speed_table(read("speed_avx2.json") or {}),
        "speed-cuda": speed_table(read("speed_cuda.json") or {}),
        "steps": steps_table(read("step_profile.json")),
        "quality": quality_table(quality),
        "short-quality": short_quality_table(quality),
        "studies": studies_table(studies),
        "semi-supervised": semi_supervised_table(read("semi_supervised.json") or {}),
        "masked": masked_table(read("masked.json") or {}),
        "text": text_table(read("text.json") or {}),
        "series": series_table(read("time_series.json") or {}),
        "bible": bible_table(read("bible.json")),
        "text-labels": labels_note(read("text_with_labels.json")),
        "quickstart": quickstart_table(read("quickstart.json")),
        "audio": audio_table(read("audio.json")),
        "speech": speech_table(read("speech.json")),
        "agent": agent_table(read("agent.json")),
        "trajectories": trajectories_table(read("trajectories.json")),
        "continue-text": continue_table(read("continue_text.json"), CONTINUE_TEXT),
        "continue-images": continue_table(read("continue_images.json"), CONTINUE_IMAGES),
        "views": views_table(read("views.json")),
        "dense": dense_table((read("dense.json") or {}).get("scenes")),
        "pairs": pairs_table((read("image_text.json") or {}).get("train")),
        "pairs-memory": pairs_memory_table((read("image_text.json") or {}).get("memory")),
        "streams": streams_table(read("streams.json")),
        "knn-memory": knn_memory_note(read("streams.json")),
        "equal-time": equal_time_table(read("equal_time.json")),
        "equal-time-summary": equal_time_summary(read("equal_time.json")),
        "equal-steps": equal_steps_table(read("equal_steps.json")),
    }
    found = 0
    for name, table in tables.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        counts = (readme.count(begin), readme.count(end))
        if counts == (0, 0):
            continue
        if counts != (1, 1):
            raise ValueError(f"the README must hold {begin} and {end} once each, got {counts}")
        before, rest = readme.split(begin)
        readme = f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"
        found += 1
    if not found:
        names = ", ".join(f"<!-- {name}:begin -->" for name in tables)
        raise ValueError(f"the README must hold one of {names}")
    return readme


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    pages = ["benchmarks/README.md", "README.md", "docs/continue.md"]
    pages += ["docs/dense_evaluation.md", "docs/image_text.md", "docs/speech_evaluation.md"]
    pages += ["docs/streams.md", "docs/guides/which_method.md"]
    default = [FOLDER.parent / page for page in pages]
    parser.add_argument("--readme", type=Path, nargs="+", default=default)
    parser.add_argument("--results", type=Path, default=FOLDER / "results")
    chosen = parser.parse_args(args)
    differing = 0
    for path in chosen.readme:
        old = path.read_text()
        new = render(old, chosen.results)
        if new == old:
            continue
        if chosen.check:
            print(f"{path} differs from the results: run python -m benchmarks.table")
            differing = 1
        else:
            path.write_text(new)
    return differing


if __name__ == "__main__":
    sys.exit(main())
