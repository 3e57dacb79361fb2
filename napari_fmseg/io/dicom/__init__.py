"""DICOM: image series, SUV, segmentation objects in and out."""
