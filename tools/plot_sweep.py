#!/usr/bin/env python3
"""Draws what `fovea sweep --json` and bench/peers/compare.py have measured, as PNG and SVG.

    fovea sweep --preset llama-3-8b --quick --json s.json && python3 tools/plot_sweep.py s.json
    python3 tools/plot_sweep.py peers.json --out plots/

From sweeps, as far as they have the rows: a roofline per target with every row on it; throughput against length;
speed-up of more threads; targets side by side. From compare.py (rows with a provider): peers as bars. Several files are
drawn together.
"""
import argparse
import collections
import json
import math
import pathlib
import sys
import textwrap

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter
except ImportError as error:
    sys.exit(f"plot_sweep.py: {error}: apt-get install python3-matplotlib, and run it by /usr/bin/python3")

# Okabe and Ito 2008: told apart by everyone, and in grey.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442"]
PROVIDER_COLORS = {"fovea": "#0072B2"}
MARKERS = {"prefill": "o", "decode": "^"}
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "fovea",
    "figure.constrained_layout.use": True,
}


def refuse(what):
    """One line on stderr, exit status 2."""
    print(f"plot_sweep.py: {what}", file=sys.stderr)
    sys.exit(2)


def engineering(value, _=None):
    """2048 as 2k, 0.5 as 0.5."""
    if value >= 1024 and value % 1024 == 0:
        return f"{value / 1024:g}k"
    return f"{value:g}"


def threads_text(*counts):
    return " and ".join(map(str, counts)) + " thread" + ("s" if counts != (1,) else "")


def unique(values):
    return list(dict.fromkeys(values))


def family(row):
    """What rows of one curve share besides target and threads."""
    heads = unique([str(row["num_q_heads"]), str(row["num_kv_heads"])])
    heads = "/".join(heads) + (" head" if heads == ["1"] else " heads")
    parts = [
        f"{row['model']} {row['layer']}:" if "model" in row else "", f"{heads} of {row['head_dim']},", row["dtype"]
    ]
    parts += [
        word for word, on in (("causal", row["causal"]), (f"window {row['window']}",
                                                          row["window"]), (f"cap {row['soft_cap']:g}", row["soft_cap"]),
                              ("sinks", row["sinks"]), (f"batch {row['batch']}", row["batch"] != 1)) if on
    ]
    return " ".join(part for part in parts if part)


def length(row):
    return row["q_len"] if row["op"] == "prefill" else row["kv_len"]


def length_axis(axis, lengths, label):
    axis.set_xscale("log", base=2)
    ticks = sorted(set(lengths))
    if len(ticks) > 9:
        ticks = ticks[::math.ceil(len(ticks) / 9)]
    axis.set_xticks(ticks)
    axis.xaxis.set_major_formatter(FuncFormatter(engineering))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", which="minor", bottom=False)
    axis.set_xlabel(label)


LENGTH_LABEL = {"prefill": "tokens", "decode": "keys and values in the cache (tokens)"}


def spread(values, gap):
    """Moves sorted values apart to at least gap, about their places."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    placed = [values[i] for i in order]
    for _ in range(200):
        moved = False
        for i in range(1, len(placed)):
            lack = gap - (placed[i] - placed[i - 1])
            if lack > 1e-6:
                placed[i - 1] -= lack / 2
                placed[i] += lack / 2
                moved = True
        if not moved:
            break
    result = [0.0] * len(values)
    for place, i in zip(placed, order):
        result[i] = place
    return result


def intensity(row):
    return row["flop"] / row["kv_bytes"]


def label_lengths(axis, rows, decades):
    """Lengths beside the points of one curve; of several they would lie on one another."""
    if len({family(row) for row in rows}) != 1 or len(rows) > 10:
        return
    for row, place in zip(rows, spread([math.log2(row["GFLOP/s"]) for row in rows], 0.032 * decades)):
        above = row["op"] == "prefill"
        axis.annotate(engineering(length(row)), (intensity(row), row["GFLOP/s"] if above else 2**place),
                      color="#333333",
                      fontsize=8,
                      xytext=(0, -8) if above else (7, 0),
                      textcoords="offset points",
                      ha="center" if above else "left",
                      va="top" if above else "center")


def multiplies_bf16(row):
    """Whether its kernels have dot products of bf16, whose peak is another than that of f32."""
    return any(name in row.get("kernels", "") for name in ("prefill_bf16", "decode_bf16"))


def roofs(rows, limits, threads):
    """(name, threads, GFLOP/s) of each peak that some row could reach, the lowest first."""
    peaks = {"FMA": limits["fma_gflops"]}
    if any(multiplies_bf16(row) for row in rows):
        peaks["bf16 products"] = limits.get("bf16_dot_gflops", [])
    result = [(name, entry["threads"], entry["value"]) for name, entries in peaks.items() for entry in entries
              if entry["threads"] in threads]
    return sorted(result, key=lambda roof: roof[2])


def label_roofs(axis, x, found, apart, colors):
    """A label over each line; lines less than a factor of `apart` over one another share theirs."""
    while found:
        chosen = [roof for roof in found if roof[2] < found[0][2] * apart]
        found = found[len(chosen):]
        counts = {name: sorted(n for other, n, _ in chosen if other == name) for name, _, _ in chosen}
        values = unique([f"{value:.0f}" for _, _, value in chosen])
        axis.annotate("; ".join(f"{name}, {threads_text(*n)}" for name, n in counts.items()) +
                      f": {' to '.join(unique([values[0], values[-1]]))} GFLOP/s", (x, chosen[-1][2]),
                      xytext=(-4, 3),
                      textcoords="offset points",
                      ha="right",
                      va="bottom",
                      color=colors[chosen[0][1]] if len({n for _, n, _ in chosen}) == 1 else "#333333",
                      fontsize=9)


def roofline(target, rows, limits):
    """Every row of a target under its ceilings: peak rates, and read bandwidth of each cache level."""
    figure, axis = plt.subplots(figsize=(10, 6.2))
    threads = unique([row["threads"] for row in rows])
    most = max(threads)
    xs = [intensity(row) for row in rows]
    x0, x1 = min(xs + [0.5]) / 2, max(xs) * 4
    found = roofs(rows, limits, threads)
    levels = {read["level"]: {entry["threads"]: entry["value"] for entry in read["gbps"]} for read in limits["read"]}
    peak = max(value for name, n, value in found if n == most)
    colors = dict(zip(threads, COLORS))
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    ys = [row["GFLOP/s"] for row in rows]
    y0, y1 = min(ys + [x0 * levels["DRAM"][most]]) / 1.6, found[-1][2] * 2.2
    axis.set_xlim(x0, x1)
    axis.set_ylim(y0, y1)
    for _, n, value in found:
        axis.plot([value / max(levels[level][n] for level in levels), x1], [value] * 2, color=colors[n], linewidth=1.6)
    label_roofs(axis, x1, found, (y1 / y0)**0.035, colors)
    # Slopes of the most threads: one line per level; labels along the left edge, apart.
    starts = [math.log2(max(x0 * levels[level][most], y0)) for level in levels]
    for level, place in zip(levels, spread(starts, 0.055 * math.log2(y1 / y0))):
        gbps = levels[level][most]
        axis.plot([x0, peak / gbps], [x0 * gbps, peak],
                  color="#777777",
                  linewidth=1,
                  linestyle="-" if level == "DRAM" else "--")
        axis.annotate(f"{level} {gbps:.0f} GB/s", (x0, 2**place),
                      xytext=(6, 7),
                      textcoords="offset points",
                      fontsize=8.5,
                      color="#555555",
                      va="bottom",
                      bbox={
                          "facecolor": "white",
                          "edgecolor": "none",
                          "pad": 0.5,
                          "alpha": 0.8
                      })
    for op in unique([row["op"] for row in rows]):
        for n in threads:
            for bf16 in (False, True):
                chosen = [row for row in rows if row["op"] == op and row["threads"] == n and multiplies_bf16(row) == bf16]
                if chosen:
                    axis.plot([intensity(row) for row in chosen], [row["GFLOP/s"] for row in chosen],
                              MARKERS[op],
                              color=colors[n],
                              markersize=7,
                              markerfacecolor="white" if bf16 else colors[n],
                              markeredgecolor=colors[n] if bf16 else "white",
                              markeredgewidth=1.3 if bf16 else 0.7,
                              label=f"{op}, {'bf16 products, ' * bf16}{threads_text(n)}",
                              zorder=3)
        label_lengths(axis, [row for row in rows if row["op"] == op and row["threads"] == most], math.log2(y1 / y0))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x >= 1 else f"1/{1 / x:g}"))
    axis.set_xlabel("FLOP per byte of K and V")
    axis.set_ylabel("GFLOP/s")
    axis.set_title(f"Roofline of {target}: every row, measured limits (read bandwidth of {threads_text(most)})")
    axis.legend(loc="lower right")
    return figure


def draw_curves(axis, rows, metric, ceiling):
    """One curve per target and threads over lengths, and its own measured ceiling, dotted."""
    series = collections.defaultdict(list)
    for row in sorted(rows, key=length):
        series[row["target"], row["threads"]].append(row)
    for i, ((target, n), chosen) in enumerate(series.items()):
        color = COLORS[i % len(COLORS)]
        xs = [length(row) for row in chosen]
        axis.plot(xs, [row[metric] for row in chosen],
                  "o-",
                  color=color,
                  markersize=4.5,
                  linewidth=1.6,
                  label=f"{target}, {threads_text(n)}")
        lines = [(xs, [ceiling(row) for row in chosen])]
        if len(set(xs)) == 1:  # a line of one point would not be seen
            lines = [([xs[0] / 1.2, xs[0] * 1.2], [ceiling(row)] * 2) for row in chosen]
        for line in lines:
            axis.plot(*line, ":", color=color, linewidth=1.4)
    axis.set_ylim(bottom=0)


def consumable(row):
    """GB/s that bandwidth_fraction of a decode row is relative to; nowhere if it read too little for one."""
    return row["GB/s"] / row["bandwidth_fraction"] if row["bandwidth_fraction"] else math.nan


METRICS = {
    "prefill": ("GFLOP/s", lambda row: row["fma_gflops"], "GFLOP/s"),
    "decode": ("GB/s", consumable, "GB/s of K and V")
}
CEILINGS = {"prefill": "peak of FMA, or of bf16 products", "decode": "min(read bandwidth, 0.75 of that peak)"}


def panels(rows, width=6.4, height=3.9):
    """A figure with a panel per family and op, and a list of (axis, op, name of the family, its rows)."""
    groups = collections.defaultdict(list)
    for row in rows:
        groups[family(row), row["op"]].append(row)
    columns = min(2, len(groups))
    lines = math.ceil(len(groups) / columns)
    figure, axes = plt.subplots(lines, columns, figsize=(width * columns, height * lines + 0.4), squeeze=False)
    for axis in axes.flat[len(groups):]:
        axis.set_visible(False)
    return figure, [(axis, op, name, chosen) for axis, ((name, op), chosen) in zip(axes.flat, groups.items())]


def title(axis, text):
    axis.set_title(textwrap.fill(text, 58))


def against_length(rows):
    figure, cells = panels(rows)
    for axis, op, name, chosen in cells:
        metric, ceiling, unit = METRICS[op]
        draw_curves(axis, chosen, metric, ceiling)
        length_axis(axis, [length(row) for row in chosen], LENGTH_LABEL[op])
        axis.set_ylabel(unit)
        title(axis, f"{op}, {name}")
        axis.plot([], [], ":", color="#555555", label=CEILINGS[op])
        axis.set_ylim(top=axis.get_ylim()[1] * 1.05)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=2)
    return figure


def thread_scaling(rows):
    """Speed-up over one thread, beside what the machine itself gives: its peak, or the limit of decode rows."""
    single = {(family(row), row["op"], row["target"], length(row)): row for row in rows if row["threads"] == 1}
    pairs = []
    for row in rows:
        one = single.get((family(row), row["op"], row["target"], length(row)))
        if row["threads"] > 1 and one:
            machine = row["fma_gflops"] / one["fma_gflops"] if row["op"] == "prefill" else consumable(row) / consumable(
                one)
            pairs.append({**row, "speedup": one["time_s"] / row["time_s"], "machine": machine})
    if not pairs:
        return None
    figure, cells = panels(pairs)
    for axis, op, name, chosen in cells:
        draw_curves(axis, chosen, "speedup", lambda row: row["machine"])
        for n in unique([row["threads"] for row in chosen]):
            axis.axhline(n, color="#999999", linewidth=1, linestyle="--")
        length_axis(axis, [length(row) for row in chosen], LENGTH_LABEL[op])
        axis.set_ylabel("times one thread")
        title(axis, f"{op}, {name}")
        axis.plot([], [], "--", color="#999999", label="threads")
        axis.plot([], [],
                  ":",
                  color="#555555",
                  label="what the machine gives: " + ("its peak" if op == "prefill" else "its limit"))
        axis.set_ylim(top=max(max(row["threads"] for row in chosen) * 1.15, axis.get_ylim()[1]))
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=2)
    return figure


def grouped_bars(axis, groups, series, value, colors, text=None):
    """Bars of each series side by side in each group; value(group, series) may be None, of a whole series as well."""
    series = [name for name in series if any(value(group, name) is not None for group in groups)]
    width = 0.8 / max(len(series), 1)
    for i, name in enumerate(series):
        places = [(g + (i - (len(series) - 1) / 2) * width, value(group, name), group) for g, group in enumerate(groups)
                 ]
        places = [(x, y, group) for x, y, group in places if y is not None]
        axis.bar([x for x, _, _ in places], [y for _, y, _ in places], width * 0.92, color=colors[name], label=name)
        for x, y, group in places:
            if text and text(group, name):
                axis.annotate(text(group, name), (x, y),
                              xytext=(0, 2),
                              textcoords="offset points",
                              ha="center",
                              va="bottom",
                              fontsize=8,
                              rotation=90)
    axis.set_xticks(range(len(groups)))
    axis.grid(axis="x", visible=False)
    axis.set_ylim(top=axis.get_ylim()[1] * 1.1)


def targets_side_by_side(rows):
    targets = unique([row["target"] for row in rows])
    if len(targets) < 2:
        return None
    threads = min(row["threads"] for row in rows)
    rows = [row for row in rows if row["threads"] == threads]
    colors = dict(zip(targets, COLORS))
    figure, cells = panels(rows)
    for axis, op, name, chosen in cells:
        metric, _, unit = METRICS[op]
        table = {(length(row), row["target"]): row for row in chosen}
        lengths = sorted({length(row) for row in chosen})
        here = [target for target in targets if any(row["target"] == target for row in chosen)]
        grouped_bars(axis, lengths, here, lambda n, target: table[n, target][metric]
                     if (n, target) in table else None, colors)
        axis.set_xticklabels([engineering(n) for n in lengths])
        axis.set_xlabel(LENGTH_LABEL[op])
        axis.set_ylabel(unit)
        title(axis, f"{op}, {name}, {threads_text(threads)}")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=min(len(here), 4))
    return figure


def peers(rows):
    """compare.py's rows: name, op, provider, time_s, gflops, gbps, ratio (of fovea's speed to the provider's)."""
    providers = unique(["fovea"] * any(row["provider"] == "fovea" for row in rows) + [row["provider"] for row in rows])
    others = iter(COLORS[1:] * 4)
    colors = {name: PROVIDER_COLORS.get(name) or next(others) for name in providers}
    units = {"prefill": ("gflops", "GFLOP/s"), "decode": ("gbps", "GB/s of K and V"), "linear": ("gflops", "GFLOP/s")}
    groups = collections.defaultdict(list)
    for row in sorted(rows, key=lambda row: list(units).index(row["op"])):
        groups[row["op"], row.get("threads")].append(row)
    widest = max(len({row["name"] for row in chosen}) for chosen in groups.values())
    figure, axes = plt.subplots(len(groups),
                                1,
                                figsize=(max(8, 0.19 * widest * len(providers) + 2), 4.2 * len(groups)),
                                squeeze=False)
    for axis, ((op, threads), chosen) in zip(axes[:, 0], groups.items()):
        table = {(row["name"], row["provider"]): row for row in chosen}
        names = unique([row["name"] for row in chosen])
        metric, unit = units[op]

        def value(name, provider):
            row = table.get((name, provider))
            return row[metric] if row and row.get(metric) is not None else None

        def ratio(name, provider):
            row = table.get((name, provider))
            return f"{row['ratio']:.2f}x" if row and provider != "fovea" and row.get("ratio") else ""

        grouped_bars(axis, names, providers, value, colors, ratio)
        axis.set_xticklabels([name.split("@")[0].removeprefix(op + "/").removesuffix(f"/t{threads}") for name in names],
                             rotation=25,
                             ha="right",
                             rotation_mode="anchor",
                             fontsize=9)
        axis.set_ylabel(unit)
        axis.set_title(f"{op}{', ' + threads_text(threads) if threads else ''}; above a bar: how many times as fast fovea is")
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE.json")
    parser.add_argument("--out", type=pathlib.Path, help="directory for the plots; default that of the first file")
    parser.add_argument("--formats", default="png,svg")
    options = parser.parse_args()
    formats, known = options.formats.split(","), matplotlib.backend_bases.FigureCanvasBase.get_supported_filetypes()
    for suffix in formats:
        if suffix not in known:
            refuse(f"--formats {options.formats}: '{suffix}' is not one of {', '.join(sorted(known))}")
    sweep_rows, peer_rows, limits, notes = [], [], {}, []
    for path in options.files:
        try:
            data = json.loads(path.read_text())
            rows = data["rows"] if isinstance(data, dict) else data
            peer_rows += [row for row in rows if "provider" in row]
            sweep_rows += [row for row in rows if "GFLOP/s" in row and row.get("op") != "layer"]  # stages are no curves
            for entry in (data.get("roofline") or {}).get("targets", []) if isinstance(data, dict) else []:
                limits[entry["target"]] = entry
        except (OSError, ValueError, KeyError, TypeError) as error:
            sys.exit(f"plot_sweep.py: {path}: {error}")
        about = data.get("context", data) if isinstance(data, dict) else {}
        notes += [", ".join(
            str(about[key]) for key in ("cpu", "date", "command") if about.get(key))] if about.get("cpu") else []
    if not sweep_rows and not peer_rows:
        sys.exit("plot_sweep.py: no measured rows of prefill or decode in " + " ".join(map(str, options.files)))
    out, stem = options.out or options.files[0].parent, options.files[0].stem
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse(f"--out {out}: {error.strerror}")

    with plt.rc_context(STYLE):
        figures = {}
        for target in unique([row["target"] for row in sweep_rows]):
            if target in limits:
                figures[f"roofline_{target}"] = roofline(target, [row for row in sweep_rows if row["target"] == target],
                                                         limits[target])
        if sweep_rows:
            figures["length"] = against_length(sweep_rows)
            figures["threads"] = thread_scaling(sweep_rows)
            figures["targets"] = targets_side_by_side(sweep_rows)
        if peer_rows:
            figures["peers"] = peers(peer_rows)
        for name, figure in figures.items():
            if figure is None:
                continue
            if notes:
                figure.supxlabel("\n".join(unique(notes)), fontsize=7.5, color="#777777")
            for suffix in formats:
                path = out / f"{stem}_{name}.{suffix}"
                try:
                    figure.savefig(path, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
                except OSError as error:
                    refuse(f"{path}: {error.strerror or error}")
                print(path)
            plt.close(figure)


if __name__ == "__main__":
    main()
