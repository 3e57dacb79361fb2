"""Names and colours of labels, as text that a file format can hold.

NRRD and MHA carry the key/value fields of a 3D Slicer segmentation (``Segment0_Name`` and so on). NIfTI carries an
XML label table in a header extension, in the words of Connectome Workbench that TotalSegmentator uses too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

from napari_fmseg.core.volume import LabelMap
from napari_fmseg.io.label_classes import class_name

__all__ = ["from_fields", "from_xml", "to_fields", "to_xml"]

Names = dict[int, str]
Colors = dict[int, tuple[float, float, float]]

_FIELD = re.compile(r"Segment(\d+)_(Name|LabelValue|Color)$")


def _values_with_names(labels: LabelMap) -> list[int]:
    return sorted({*labels.names, *labels.colors} - {0})


def to_fields(labels: LabelMap) -> dict[str, str]:
    """Write names and colours as key/value fields; empty if the labels have neither."""
    fields: dict[str, str] = {}
    z, y, x = labels.geometry.shape
    for number, value in enumerate(_values_with_names(labels)):
        stem = f"Segment{number}_"
        fields[stem + "ID"] = f"Segment_{value}"
        fields[stem + "Name"] = class_name(labels, value)
        fields[stem + "LabelValue"] = str(value)
        fields[stem + "Layer"] = "0"
        fields[stem + "Extent"] = f"0 {x - 1} 0 {y - 1} 0 {z - 1}"
        if value in labels.colors:
            fields[stem + "Color"] = " ".join(f"{part:.6g}" for part in labels.colors[value])
    return fields


def from_fields(fields: Mapping[str, str]) -> tuple[Names, Colors]:
    """Read names and colours from key/value fields; what makes no sense is left out."""
    segments: dict[int, dict[str, str]] = {}
    for key, text in fields.items():
        if match := _FIELD.match(key):
            segments.setdefault(int(match[1]), {})[match[2]] = text.strip()
    names: Names = {}
    colors: Colors = {}
    for number, segment in sorted(segments.items()):
        value = _whole(segment.get("LabelValue", str(number + 1)))
        if value is None:
            continue
        if segment.get("Name"):
            names[value] = segment["Name"]
        color = _color(segment.get("Color", "").split())
        if color:
            colors[value] = color
    return names, colors


def to_xml(labels: LabelMap) -> bytes:
    """Write names and colours as an XML label table; empty if the labels have neither."""
    if not _values_with_names(labels):
        return b""
    root = ElementTree.Element("CaretExtension")
    ElementTree.SubElement(root, "Date")
    image = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(image, "LabelTable")
    for value in _values_with_names(labels):
        color = labels.colors.get(value)
        rgb = color or (1.0, 1.0, 1.0)
        paint = {key: f"{part:.6g}" for key, part in zip(("Red", "Green", "Blue"), rgb, strict=True)}
        label = ElementTree.SubElement(table, "Label", Key=str(value), Alpha="1" if color else "0")
        label.attrib.update(paint)
        label.text = class_name(labels, value)
    ElementTree.SubElement(image, "StudyMetaDataLinkSet")
    ElementTree.SubElement(image, "VolumeType").text = "Label"
    text: bytes = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
    return text


def from_xml(text: bytes) -> tuple[Names, Colors]:
    """Read names and colours from an XML label table; nothing if it is none."""
    names: Names = {}
    colors: Colors = {}
    text = text.strip(b"\0 \n")
    if b"<LabelTable" not in text or b"<!ENTITY" in text:
        return names, colors
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, LookupError):  # the latter for an encoding that nobody knows
        return names, colors
    for label in root.iter("Label"):
        value = _whole(label.get("Key", ""))
        if value is None or value == 0:
            continue
        if label.text and label.text.strip():
            names[value] = label.text.strip()
        color = _color([label.get(key, "") for key in ("Red", "Green", "Blue")])
        if color and label.get("Alpha", "1") != "0":
            colors[value] = color
    return names, colors


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\s*[+-]?\d{1,19}\s*", text) else None


def _color(parts: list[str]) -> tuple[float, float, float] | None:
    try:
        red, green, blue = (min(max(float(part), 0.0), 1.0) for part in parts)
    except ValueError:
        return None
    return (red, green, blue)
