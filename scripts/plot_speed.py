#!/usr/bin/env python3
"""Draws docs/images/speed.svg, the README's chart, from the table "Training steps" in docs/benchmarks.md.

    scripts/plot_speed.py        (standard library only)

Each group of bars is one clip length with activation checkpointing: diffusers with compiled blocks, full attention
and VMoBA in this program. The caption states the GPU, the date and the commit as the page gives them.
"""
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 66, 96
BAR, GAP = 46, 6
COLOURS = {"diffusers, compiled blocks": "#b8bcc4", "vmoba, full attention": "#6b7280", "vmoba, VMoBA": "#0b7a75"}
CLIPS = {32760: "81 frames, 480 x 832", 55296: "93 frames, 576 x 1024", 75600: "81 frames, 720 x 1280"}


def training_steps(page):
    """Rows (tokens, {series: seconds}) of the table, with the date and the commit of its section."""
    section = page.split("## Training steps", 1)[1].split("\n## ", 1)[0]
    date, commit = re.search(r"(\d{4}-\d\d-\d\d), commit ([0-9a-f]{7})", section).groups()
    rows = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) < 6 or cells[1] != "each layer":
            continue
        tokens = int(cells[0].replace(",", ""))
        if tokens in CLIPS:
            milliseconds = [cells[5].split("/")[1], cells[2], cells[3]]
            seconds = [float(value.strip().replace(",", "")) / 1000 for value in milliseconds]
            rows.append((tokens, dict(zip(COLOURS, seconds))))
    assert len(rows) == len(CLIPS), f"expected rows for {list(CLIPS)} tokens, found {[row[0] for row in rows]}"
    return rows, date, commit


def text(x, y, content, anchor="middle", size=13, weight="normal", colour="#222"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
            f'fill="{colour}">{content}</text>')


def draw(rows, date, commit, gpu):
    most = max(max(seconds.values()) for _, seconds in rows)
    height_of = lambda seconds: seconds / (most * 1.05) * (HEIGHT - TOP - BOTTOM)
    base = HEIGHT - BOTTOM
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
           f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           text(LEFT, 24, "Seconds per training step, Wan2.1-1.3B (lower is better)", "start", 15, "bold")]
    x = LEFT
    for name, colour in COLOURS.items():
        out.append(f'<rect x="{x}" y="38" width="12" height="12" fill="{colour}"/>')
        out.append(text(x + 18, 49, name, "start"))
        x += 18 + 7 * len(name) + 24
    for seconds in range(0, int(most) + 1, 2):
        y = base - height_of(seconds)
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        out.append(text(LEFT - 8, y + 4, seconds, "end", 12, colour="#555"))
    slot = (WIDTH - LEFT - RIGHT) / len(rows)
    for i, (tokens, series) in enumerate(rows):
        middle = LEFT + slot * (i + 0.5)
        x = middle - (3 * BAR + 2 * GAP) / 2
        for name, seconds in series.items():
            tall = height_of(seconds)
            out.append(f'<rect x="{x:.1f}" y="{base - tall:.1f}" width="{BAR}" height="{tall:.1f}" '
                       f'fill="{COLOURS[name]}"/>')
            bold = "bold" if name == "vmoba, VMoBA" else "normal"
            out.append(text(x + BAR / 2, base - tall - 5, f"{seconds:.2f}", size=12, weight=bold))
            if name == "vmoba, VMoBA":
                factor = series["vmoba, full attention"] / seconds
                out.append(text(x + BAR / 2, base - tall - 21, f"{factor:.2f}x", weight="bold", colour="#0b7a75"))
            x += BAR + GAP
        out.append(text(middle, base + 20, f"{tokens:,} tokens", weight="bold"))
        out.append(text(middle, base + 37, CLIPS[tokens], size=12, colour="#555"))
    out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}" stroke="#555"/>')
    caption = [f"{gpu}, {date}, commit {commit}. Batch 1, bf16, random weights, activation checkpointing.",
               "Factors compare VMoBA with full attention. diffusers ran on its own, on the same kind of GPU."]
    for i, line in enumerate(caption):
        out.append(text(LEFT, HEIGHT - 32 + 17 * i, line, "start", 12, colour="#555"))
    return "\n".join(out + ["</svg>"]) + "\n"


def main():
    page = (ROOT / "docs/benchmarks.md").read_text()
    rows, date, commit = training_steps(page)
    gpu = re.search(r"one (NVIDIA H\d+)", page)[1]
    (ROOT / "docs/images/speed.svg").write_text(draw(rows, date, commit, "One " + gpu))


if __name__ == "__main__":
    main()
