#!/usr/bin/env python3
"""Draws attention weights as heat maps, one per head: queries down, keys across.

    fovea attend --q Q.npy --k K.npy --v V.npy --weights W.npy && python3 tools/plot_attention.py W.npy

W.npy is [batch, heads, queries, keys] or [heads, queries, keys], as `fovea attend --weights` and models write it.
"""
import argparse
import math
import pathlib
import sys

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    sys.exit(f"plot_attention.py: {error}: apt-get install python3-matplotlib, and run it by /usr/bin/python3")

MOST_LABELS = 40  # tokens that are still legible at a panel's edge


def refuse(what):
    """One line on stderr, exit status 2."""
    print(f"plot_attention.py: {what}", file=sys.stderr)
    sys.exit(2)


def tokens_of(path, count):
    try:
        tokens = path.read_text().splitlines()
    except OSError as error:
        sys.exit(f"plot_attention.py: {error}")
    if len(tokens) < count:
        sys.exit(f"plot_attention.py: {path}: {len(tokens)} lines for {count} tokens")
    return tokens


def draw(weights, heads, title, query_tokens, key_tokens):
    columns = min(len(heads), 4 if len(heads) > 2 else len(heads))
    lines = math.ceil(len(heads) / columns)
    labels = bool(key_tokens)
    size = (0.16 * max(weights.shape[-1], 16) + 1 if labels else 2.6)
    figure, axes = plt.subplots(lines,
                                columns,
                                figsize=(max(size * columns + 1, 5), size * lines + 0.9),
                                squeeze=False,
                                constrained_layout=True)
    # One scale for all heads. The few largest weights, such as the first token's, would make all else look empty.
    top = max(float(np.quantile(weights, 0.995)), 1e-6)
    for axis in axes.flat[len(heads):]:
        axis.set_visible(False)
    for axis, head in zip(axes.flat, heads):
        image = axis.imshow(weights[head],
                            cmap="magma_r",
                            vmin=0,
                            vmax=top,
                            aspect="auto" if not labels else "equal",
                            interpolation="nearest")
        axis.set_title(f"head {head}", fontsize=9)
        axis.tick_params(labelsize=7, length=2)
        if labels:
            axis.set_xticks(range(len(key_tokens)), key_tokens, rotation=90)
            axis.set_yticks(range(len(query_tokens)), query_tokens)
        else:
            for side in (axis.xaxis, axis.yaxis):
                side.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        axis.label_outer()
    shown = [axis for axis in axes.flat if axis.get_visible()]
    figure.colorbar(image,
                    ax=shown,
                    shrink=0.8 if lines > 1 else 1.0,
                    pad=0.01,
                    label="weight",
                    extend="max" if weights.max() > top else "neither")
    figure.supxlabel("keys", fontsize=9)
    figure.supylabel("queries", fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=pathlib.Path, metavar="W.npy")
    parser.add_argument("--batch", type=int, default=0, help="which sequence of the batch; default the first")
    parser.add_argument("--heads", help="numbers, separated by commas; default all")
    parser.add_argument("--queries", type=int, help="only the first N queries")
    parser.add_argument("--keys", type=int, help="only the first N keys")
    parser.add_argument("--tokens",
                        type=pathlib.Path,
                        help=f"a file with one token a line, to label up to {MOST_LABELS} keys and queries")
    parser.add_argument("--out", type=pathlib.Path, help="PNG, SVG or PDF; default W.png and W.svg")
    options = parser.parse_args()
    known = matplotlib.backend_bases.FigureCanvasBase.get_supported_filetypes()
    if options.out and options.out.suffix[1:].lower() not in known:
        refuse(f"--out {options.out}: a name that ends in one of {', '.join(sorted(known))} is wanted")
    try:
        weights = np.load(options.weights, allow_pickle=False)
        if weights.ndim == 4:
            weights = weights[options.batch]
        if weights.ndim != 3 or 0 in weights.shape:
            raise ValueError(
                f"shape {list(weights.shape)}; [batch, heads, queries, keys] or [heads, queries, keys] is wanted")
        weights = weights[:, :options.queries, :options.keys]
        heads = [int(n) for n in options.heads.split(",")] if options.heads else list(range(weights.shape[0]))
        weights[heads]
    except (OSError, ValueError, IndexError) as error:
        sys.exit(f"plot_attention.py: {options.weights}: {error}")
    keys, queries = [], []
    if options.tokens and max(weights.shape[1:]) > MOST_LABELS:
        print(f"plot_attention.py: --tokens: {max(weights.shape[1:])} are more than the {MOST_LABELS} that are legible, "
              "no labels: see --queries and --keys", file=sys.stderr)
    elif options.tokens:
        tokens = tokens_of(options.tokens, max(weights.shape[1:]))
        keys, queries = tokens[:weights.shape[2]], tokens[:weights.shape[1]]
    figure = draw(weights, heads, options.weights.name, queries, keys)
    for path in [options.out] if options.out else [options.weights.with_suffix(suffix) for suffix in (".png", ".svg")]:
        try:
            figure.savefig(path, dpi=150)
        except OSError as error:
            refuse(f"{path}: {error.strerror or error}")
        print(path)


if __name__ == "__main__":
    main()
