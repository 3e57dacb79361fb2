"""A server for 3D Slicer and OHIF: the MONAI Label protocol over our models, projects and trainings."""
