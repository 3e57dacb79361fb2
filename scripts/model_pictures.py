"""Draw the best, the median and the worst held-out case of shipped models: docs/images/models.

    python scripts/model_pictures.py resources/models/CARD.toml...

Cases and Dice are those that scripts/score_cards.py keeps; each case is segmented once more for its picture. Of data
that may not be passed on nothing is drawn: only cards in resources/models are taken.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from score_cards import ROOT, held_out, measured
from stages_picture import draw

from napari_fmseg import LabelMap, Volume
from napari_fmseg.core.components import bounding_box
from napari_fmseg.core.events import drain
from napari_fmseg.datasets.case import read_case
from napari_fmseg.models.card import read_card
from napari_fmseg.models.weights import load_model
from napari_fmseg.pipelines import SegmentOptions, segment

OUT = ROOT / "docs" / "images" / "models"
SCORES = ROOT / "runs" / "scores"
WIDTH, MARGIN, TITLE = 460, 8, 30  # pixels of a case's column
ROWS = ("image", "true labels", "mask of the model")
AROUND_MM = 15.0  # of the structures that is shown
RANKS = {"best": 0.0, "median": 0.5, "worst": 1.0}


def around(volume: Volume, truth: LabelMap, mask: LabelMap) -> tuple[Volume, LabelMap, LabelMap]:
    """Return a volume, the truth and a mask on its grid, cropped around the structures."""
    box = bounding_box((truth.data > 0) | (mask.data > 0))
    assert box is not None
    wider = tuple(
        slice(max(0, side.start - round(AROUND_MM / mm)), side.stop + round(AROUND_MM / mm))
        for side, mm in zip(box, volume.geometry.spacing, strict=True)
    )
    grid = volume.geometry.crop(wider)  # type: ignore[arg-type]
    image = dataclasses.replace(volume, data=volume.data[(..., *wider)], geometry=grid)
    hand, found = (dataclasses.replace(one, data=one.data[wider], geometry=grid) for one in (truth, mask))
    return image, hand, found


def picture(path: Path) -> Image.Image:
    """Return the three cases of a card beside each other, each as image, truth and mask in three planes."""
    card, model = read_card(path), load_model(path)
    names, cases = held_out(path, SCORES)
    dice = {case.case: case.mean("dice") for case in measured(path, SCORES, 2.0).cases}
    ranked = sorted((name for name in dice if math.isfinite(dice[name])), key=lambda name: -dice[name])
    labels = [card.labels[i] for i in sorted(card.labels)]
    columns = []
    for rank, share in RANKS.items():
        name = ranked[round(share * (len(ranked) - 1))]
        case = next(case for case in cases if case.name == name)
        volume, truth = read_case(case, names, labels)
        mask = drain(segment(volume, model, SegmentOptions(precision="float32", show_stages=False)))
        shown, hand, found = around(volume, truth, mask)
        drawn = draw(shown, {"by hand": hand, "model": found}, titles=False)  # they would be as coarse as the voxels
        drawn = drawn.resize((WIDTH, round(drawn.height * WIDTH / drawn.width)), Image.Resampling.BICUBIC)
        columns.append((f"{rank}: {name}, Dice {dice[name]:.2f}", drawn))
    whole = Image.new("RGB", (len(columns) * (WIDTH + MARGIN) - MARGIN, TITLE + max(c.height for _, c in columns)))
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(15)
    for i, (title, drawn) in enumerate(columns):
        pen.text((i * (WIDTH + MARGIN) + 4, 6), title, "white", font)
        whole.paste(drawn, (i * (WIDTH + MARGIN), TITLE))
        for row, name in enumerate(ROWS):
            at = i * (WIDTH + MARGIN) + 4, TITLE + row * drawn.height // len(ROWS) + 2
            pen.text(at, name, "white", font, stroke_width=2, stroke_fill="black")
    return whole


def main(words: list[str]) -> None:
    """Draw the pictures of the cards."""
    OUT.mkdir(parents=True, exist_ok=True)
    for word in words:
        path = Path(word)
        if path.resolve().parent != ROOT / "resources" / "models":
            sys.exit(f"{path.name} lies elsewhere: the data of a restricted model must not be shown.")
        picture(path).save(OUT / f"{path.stem}.jpg", quality=88)


if __name__ == "__main__":
    main(sys.argv[1:])
