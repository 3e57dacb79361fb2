"""How docks are laid out: rows and columns with shares, forms with tooltips, widgets that say why they are disabled."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("qtpy")
from qtpy.QtWidgets import QLineEdit, QWidget

from napari_fmseg._napari.common.widgets import add_row, allow, form, hbox, push_button, vbox


def test_a_row_in_a_column_gives_its_parts_their_shares_and_leaves_room_where_a_number_stands(qtbot: Any) -> None:
    window = QWidget()
    qtbot.addWidget(window)
    narrow, wide, below = (QWidget() for _ in range(3))
    vbox(hbox((narrow, 1), (wide, 3), spacing=0), (below, 1), 1, of=window, margins=(2, 3, 4, 5), spacing=0)
    window.resize(406, 208)
    window.show()
    assert (narrow.width(), wide.width()) == (100, 300)
    assert (narrow.x(), narrow.y()) == (2, 3)
    assert below.height() < 208 - 3 - 5 - narrow.height()  # the rest is empty


def test_a_field_and_its_label_share_a_tooltip_and_without_one_the_label_takes_that_of_the_field(qtbot: Any) -> None:
    window = QWidget()
    qtbot.addWidget(window)
    fields, place, name = form(window), QLineEdit(), QLineEdit()
    name.setToolTip("its own")
    first, second = add_row(fields, "&Place", place, "where"), add_row(fields, "&Name", name)
    assert (first.toolTip(), place.toolTip(), first.buddy()) == ("where", "where", place)
    assert (second.toolTip(), name.toolTip()) == ("its own", "its own")


def test_what_is_disabled_states_why_and_what_it_does_when_it_is_enabled_again(qtbot: Any) -> None:
    button = push_button("Run", "Runs.")
    qtbot.addWidget(button)
    allow(button, "Choose a model first.", "Runs.")
    assert (button.isEnabled(), button.toolTip()) == (False, "Choose a model first.")
    allow(button, "", "Runs.")
    assert (button.isEnabled(), button.toolTip()) == (True, "Runs.")
